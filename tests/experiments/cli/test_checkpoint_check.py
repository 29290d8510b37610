"""Continuing a checkpoint: every difference from its run is named, and must be allowed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import Namespace

from experiments.cli.checkpoint_check import changed_inputs, changes, check_resume, start_checkpoint
from experiments.cli.experiment_cli import parse, run_fingerprint, settings_of
from experiments.cli.messages import quieten
from mmemb.storage.json_files import write_json
from tests.end_to_end.test_interrupted_fit import fit_trunk, trunk  # noqa: F401  (a fixture)
from tests.experiments.cli.test_cli_errors import message_of
from tests.fixtures.tiny_experiment import POCKET, Experiment, run, settings_kept

SETTINGS: dict[str, Any] = {
    "subcommand": "fit",
    "trainer": {"max_steps": 4, "precision": None, "callbacks": "[]"},
    "model": {"init_args": {"temperature": 0.05, "optimizer": {"init_args": {"lr": 0.1}}}},
    "data": {"init_args": {"batch_size": 8, "pairs": ["a"]}},
}


def other(*path: str, value: Any) -> dict[str, Any]:
    """The settings with one value changed."""
    head, *rest = path
    inner = SETTINGS
    copy: dict[str, Any] = {**inner}
    node = copy
    for name in path[:-1]:
        node[name] = {**node[name]}
        node = node[name]
    node[path[-1]] = value
    return copy


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Where a checkpoint of a run of `SETTINGS` would lie."""
    given = {"devices": 2, "callbacks": None}
    recorded = SETTINGS | {"trainer": SETTINGS["trainer"] | given, "name": "trunk"}
    del recorded["subcommand"]
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/config.yaml").write_text(yaml.safe_dump(recorded))
    mark = {"fingerprint": "f", "inputs": {"data/pocket": "1", "gone": "2"}}
    write_json(tmp_path / "run/fingerprint.json", mark)
    return tmp_path / "run/checkpoints/last.ckpt"


BATCH = other("data", "init_args", "batch_size", value=16)


def test_equal_settings_may_go_on(checkpoint: Path) -> None:
    check_resume(checkpoint, SETTINGS, {"data/pocket": "1", "new": "3"})


def test_every_difference_is_listed_with_the_flag_that_allows_it(checkpoint: Path) -> None:
    changed = BATCH | {"trainer": SETTINGS["trainer"] | {"max_steps": 9}}
    with pytest.raises(ValueError, match="belongs to a run of other settings") as raised:
        check_resume(checkpoint, changed, {"data/pocket": "7"})
    text = str(raised.value)
    assert "data.init_args.batch_size was 8, is 16" in text
    assert "trainer.max_steps was 4, is 9" in text
    assert "data/pocket holds other data than when the run was started" in text
    assert "--allow-change trainer.max_steps data.init_args.batch_size data/pocket\n" in text
    assert text.endswith(f"if it has finished: --init {checkpoint.parent.parent}")


def test_what_is_allowed_may_differ_and_nothing_else(checkpoint: Path) -> None:
    check_resume(checkpoint, BATCH, {}, ["data.init_args.batch_size"])
    check_resume(checkpoint, BATCH, {}, ["data"])
    check_resume(checkpoint, SETTINGS, {"data/pocket": "7"}, ["data/pocket"])
    with pytest.raises(ValueError, match="--allow-change trainer: this is no difference"):
        check_resume(checkpoint, BATCH, {}, ["data", "trainer"])


def test_the_optimiser_comes_with_the_checkpoint(checkpoint: Path) -> None:
    faster = other("model", "init_args", "optimizer", "init_args", "lr", value=1.0)
    with pytest.raises(
        ValueError, match=r"optimizer\.init_args\.lr was 0\.1, is 1\.0: a checkpoint"
    ):
        check_resume(checkpoint, faster, {}, ["model"])


def test_a_checkpoint_of_nobodys_run_is_not_compared(tmp_path: Path) -> None:
    check_resume(tmp_path / "weights.ckpt", BATCH, {})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (other("data", "init_args", "pairs", value=["a", "b"]), {"data.init_args.pairs"}),
        (other("model", "init_args", "new", value={"x": 1}), {"model.init_args.new.x"}),
        (other("model", "init_args", value={}), {"model.init_args", "model.init_args.temperature",
                                                  "model.init_args.optimizer.init_args.lr"}),
    ],
)  # fmt: skip
def test_changes_name_keys(settings: Mapping[str, Any], words: set[str]) -> None:
    recorded = {**SETTINGS, "trainer": {"max_steps": 4, "precision": None}}
    assert set(changes(recorded, settings)) == words


def test_a_setting_that_came_later_counts_only_when_it_is_set() -> None:
    """Runs from before it, and those that wrote null, are runs of the same settings."""
    key = "data.init_args.random_crop"
    unset, crop = (other(*key.split("."), value=value) for value in (None, [0.9, 1.0]))
    assert key not in changes(SETTINGS, unset) | changes(unset, SETTINGS)
    assert key in changes(unset, crop)

    command = ["fit", "--config", str(POCKET / "trunk.yaml"), "--data.features", "null"]
    quieten()
    with settings_kept():
        plain, cut = parse(command), parse([*command, "--data.random_crop", "[0.9, 1.0]"])
    assert "random_crop" not in settings_of(plain, "fit")["data"]["init_args"]
    assert run_fingerprint(plain, "fit") != run_fingerprint(cut, "fit")


def test_a_run_of_an_older_version_knows_no_inputs(tmp_path: Path) -> None:
    assert changed_inputs(tmp_path, {"data": "1"}) == {}


def test_the_checkpoint_that_a_run_starts_from_counts(tmp_path: Path) -> None:
    from experiments.cli.experiment_cli import run_fingerprint

    def mark(subcommand: str, checkpoint: Path | None) -> str:
        parts = {name: Namespace(init_args=Namespace()) for name in ("model", "data")}
        config = Namespace(
            **parts,
            **{"name": "trunk", "experiment": "tiny", "runs": str(tmp_path), "seed_everything": 0},
            trainer=Namespace(callbacks=None),
            ckpt_path=checkpoint and str(checkpoint),
        )
        return run_fingerprint(config, subcommand)

    one, other = (tmp_path / name / "checkpoints/last.ckpt" for name in ("one", "other"))
    for path in (one, other):
        path.parent.mkdir(parents=True)
        path.write_text(str(path))
    for subcommand in ("fit", "validate", "test", "predict"):
        marks = [mark(subcommand, path) for path in (None, one, other)]
        assert len(set(marks)) == 3
        assert mark(subcommand, one) == marks[1]

    write_json(tmp_path / "one/fingerprint.json", {"fingerprint": mark("fit", None)})
    assert mark("fit", one) == mark("fit", None), "it continues a run of these very settings"

    before = mark("predict", one)
    one.write_text("other weights under the same name")
    assert mark("predict", one) != before


def test_an_interrupted_run_goes_on_from_its_own_checkpoint(tmp_path: Path) -> None:
    given, run = tmp_path / "earlier/checkpoints/last.ckpt", tmp_path / "run"
    own = [run / "checkpoints" / name for name in ("step.ckpt", "last.ckpt")]
    assert start_checkpoint(None, run) is None
    assert start_checkpoint(str(given), run) == str(given)

    own[0].parent.mkdir(parents=True)
    for path in own:
        torch.save({}, path)
    assert start_checkpoint(None, run) == str(own[1])
    assert start_checkpoint(str(given), run) == str(own[1])
    assert start_checkpoint(str(own[0]), run) == str(own[0]), "one of its own is a choice"


@pytest.mark.slow  # the default suite has 90 seconds
def test_a_fit_goes_on_with_an_allowed_change_alone(
    trunk: Experiment,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = fit_trunk(trunk, tmp_path / "runs")
    last = str(folder / "trunk/checkpoints/last.ckpt")
    longer = ["--runs", str(tmp_path / "more"), "--ckpt_path", last, "--trainer.max_steps", "6"]
    longer += ["--data.num_workers", "1"]
    text = message_of(trunk.command("trunk", *longer), capsys)
    assert "trainer.max_steps was 4, is 6" in text
    assert "num_workers" not in text, "who reads is no matter of results"
    run(trunk.command("trunk", *longer, "--allow-change", "trainer.max_steps"))
    assert (tmp_path / "more/tiny/trunk").is_symlink()
