"""A line that says why a stage runs again although a run of its name is there."""

from __future__ import annotations

from pathlib import Path

import yaml

from experiments.cli.checkpoint_check import flattened
from experiments.runs.recorded_config import read_config
from mmemb.storage.run_folder import RunFolder

_MOST_NAMED = 3


def made_anew(link: Path, config_text: str) -> str:
    """Returns in which settings the run that a link shows differs from the one that starts now.

    Args:
        link: of the stage, e.g. `runs/own/train`.
        config_text: configuration of the new run, as its `config.yaml` will hold it.

    Returns:
        A line; "" if there is no earlier run, or only its inputs or the code have changed.
    """
    if not (link.is_symlink() and RunFolder(link).config.is_file()):
        return ""

    former, new = flattened(read_config(link)), flattened(yaml.safe_load(config_text))
    # Where a run lies is no setting of it.
    ignored = ("trainer.default_root_dir", "trainer.logger")
    changed = [
        f"{key} {former.get(key)!r}, now {new.get(key)!r}"
        for key in sorted({*former, *new})
        if former.get(key) != new.get(key) and not key.startswith(ignored)
    ]
    if not changed:
        return ""

    named = "; ".join(changed[:_MOST_NAMED])
    more = f"; and {len(changed) - _MOST_NAMED} more" if len(changed) > _MOST_NAMED else ""
    return (
        f"{link} was made with other settings ({named}{more}), so it is made again. The former run "
        f"stays in {link.resolve().name}."
    )
