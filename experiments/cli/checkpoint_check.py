"""Compares the run of a checkpoint with the settings and inputs that are to continue it.

Lightning loads whatever it is given. A run that goes on with another batch size, or on data that
was made again, is neither the old run nor a new one; so every difference must be allowed by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from callbacks.checkpoint_io import newest_whole
from experiments.runs.deciding_settings import deciding_trainer
from experiments.runs.recorded_config import read_config
from mmemb.records.schema import read_json
from mmemb.storage.run_folder import RunFolder
from mmemb.storage.run_marks import RunMark

MACHINE_KEYS = ("num_workers", "start_method", "archive_limits", "scores")
"""Settings of a data module that change no result; `scores` are made again where they are stale."""

LATER_KEYS = ("random_crop",)
"""Settings of a data module that are younger than runs which are still of use: null counts as if
they were not there, so that these runs keep their fingerprints."""

KEPT = "model.init_args.optimizer"
"""Settings that the checkpoint's own state overrides: to allow their change would be a lie."""


def check_resume(
    checkpoint: Path,
    settings: Mapping[str, Any],
    inputs: Mapping[str, str],
    allowed: Sequence[str] = (),
) -> None:
    """Compares a checkpoint's run with what is about to continue it.

    Args:
        checkpoint: `<run>/checkpoints/NAME.ckpt`; one that lies in no run is not compared.
        settings: as `experiments.cli.experiment_cli.settings_of` gives them.
        inputs: path -> identity, as `mmemb.storage.fingerprints.input_identities` gives them.
        allowed: keys and paths that may differ; a key allows all below it.

    Raises:
        ValueError: something differs that was not allowed; all differences are listed.
    """
    run = run_of(checkpoint)
    if not RunFolder(run).config.is_file():
        return

    recorded = read_config(run)
    differences = changes(recorded, settings) | changed_inputs(run, inputs)

    # An allowed key that changes nothing is a mistyped one, and the true difference stays
    # hidden.
    unknown = [key for key in allowed if not any(_covers(key, name) for name in differences)]
    if unknown:
        raise ValueError(
            f"--allow-change {unknown[0]}: this is no difference between {run} and the settings of "
            f"now. They differ in: {', '.join(differences) or 'nothing'}."
        )

    # The restored optimiser state overrides these settings, so a change would have no effect.
    kept = [key for key in differences if _covers(KEPT, key)]
    if kept:
        raise ValueError(
            f"{kept[0]} {differences[kept[0]]}: a checkpoint brings the state of its optimiser, "
            "learning rates included, so this change would do nothing. Leave the optimiser as it "
            "was, or start a new run from the weights of that one, if it has finished: --init "
            f"{run}"
        )

    refused = {k: v for k, v in differences.items() if not any(_covers(key, k) for key in allowed)}
    if refused:
        lines = "".join(f"\n  {key} {words}" for key, words in refused.items())
        keys = " ".join(refused)
        raise ValueError(
            f"{checkpoint} belongs to a run of other settings or inputs:{lines}\n"
            f"To continue it all the same: --allow-change {keys}\n"
            f"To start a new run from its weights, if it has finished: --init {run}"
        )


def run_of(checkpoint: Path) -> Path:
    """Returns the folder of the run that `<run>/checkpoints/NAME.ckpt` belongs to."""
    return checkpoint.absolute().parent.parent


def start_checkpoint(checkpoint: str | None, run: Path) -> str | None:
    """Returns the checkpoint from which a fit starts; None for the first step.

    Args:
        checkpoint: named by the user, or None.
        run: the folder of this run, which an earlier process may have begun.
    """
    if checkpoint is not None and Path(checkpoint).resolve().is_relative_to(run.resolve()):
        return checkpoint

    # An interrupted run has left the foreign checkpoint that it began with behind.
    newest_checkpoint = newest_whole(RunFolder(run).checkpoints)
    return checkpoint if newest_checkpoint is None else str(newest_checkpoint)


def changes(recorded: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, str]:
    """Returns key -> `was X, is Y`, for every setting that was recorded otherwise."""
    # An earlier Lightning may have recorded keys that today's has no more.
    select = str(settings.get("select", "last"))
    before = deciding_trainer(recorded.get("trainer") or {}, select)
    before = {key: value for key, value in before.items() if key in settings.get("trainer", {})}
    recorded = {**recorded, "trainer": before}

    now = flattened({k: v for k, v in settings.items() if k != "subcommand"})
    then = flattened({key: recorded.get(key) for key in settings if key != "subcommand"})

    # An object of its own: a recorded None differs from a key that is not there.
    missing = {name: None if name.endswith(LATER_KEYS) else object() for name in [*now, *then]}
    return {
        name: f"was {_word(then, name)}, is {_word(now, name)}"
        for name, none in missing.items()
        if then.get(name, none) != now.get(name, none)
        and not set(name.split(".")) & set(MACHINE_KEYS)
    }


def changed_inputs(run: Path, inputs: Mapping[str, str]) -> dict[str, str]:
    """Returns path -> text, for inputs whose content differs from the recorded one."""
    path = RunFolder(run).mark
    identities = read_json(path, RunMark).inputs if path.is_file() else {}

    # An input that the mark does not name is new to the run: `changes` reports its setting.
    return {
        name: "holds other data than when the run was started"
        for name, identity in inputs.items()
        if identities.get(name, identity) != identity
    }


def flattened(data: Any, name: str = "") -> dict[str, Any]:
    """Returns dotted key -> value; lists count as values.

    >>> flattened({"a": {"b": 1, "c": {}}, "d": [2]})
    {'a.b': 1, 'a.c': {}, 'd': [2]}
    """

    # An empty table stays as a value, or its removal would not count as a difference.
    if not isinstance(data, Mapping) or not data:
        return {name: list(data) if isinstance(data, tuple) else data}
    values: dict[str, Any] = {}
    for key, value in data.items():
        values |= flattened(value, f"{name}.{key}" if name else str(key))
    return values


def _covers(key: str, name: str) -> bool:
    return name == key or name.startswith(f"{key}.")


def _word(values: Mapping[str, Any], name: str) -> str:
    return f"{values[name]!r:.80}" if name in values else "not set"
