"""The command that comes after a fit or a test, as it is typed in the shell that ran this one."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from datamodules.prepare.next_command import next_command
from experiments.cli.config_files import CONFIGS, SUFFIX
from mmemb.storage.run_folder import ExperimentFolder

_TEST = "test.yaml"
"""A file of this name beside the configuration of a fit tests the backbone that the fit leaves."""


def next_line(config: Namespace, subcommand: str, files: Sequence[Path], ranks: bool) -> str:
    """Returns a line with the command that comes next; "" where there is none.

    Args:
        config: of the run that has finished.
        subcommand: that it ran.
        files: its configurations.
        ranks: whether it has left the rank of every query.
    """
    # The stages of a pipeline are processes of its own, and it says itself what comes next.
    if multiprocessing.parent_process() is not None:
        return ""

    words: Sequence[str] = ()
    if subcommand == "fit":
        words = _after_fit(config, files)
    elif subcommand == "test" and ranks:
        words = ("report", "build", str(_experiment(config).path))
    return f"next: {command_line(words)}" if words else ""


def command_line(words: Sequence[str]) -> str:
    """Returns a command in the form that was typed, `mmemb ...` or `python -m ...`.

    Args:
        words: as behind `mmemb`.
    """
    typed = "mmemb" if Path(sys.argv[0]).name == "mmemb" else "python -m"
    return next_command(typed, words)


def _after_fit(config: Namespace, files: Sequence[Path]) -> list[str]:
    """Returns the test of the backbone that a fit has left, if a file beside its own is one."""
    places = [path.parent / _TEST for path in reversed(files)]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        return []

    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    tested = _saved_backbone(data)
    if not tested:
        return []

    # Only what that file states otherwise.
    words = ["test", "--config", _shown(path)]
    for key in ("experiment", "data_root"):
        if config[key] != data.get(key):
            words += [f"--{key}", str(config[key])]
    if config.runs != os.environ.get("MMEMB_RUNS", "runs"):
        words += ["--runs", config.runs]

    left = str(_experiment(config).run(config.name).backbone)
    for key in ("runs", "experiment"):
        tested = tested.replace(f"${{{key}}}", config[key])
    if Path(tested) != Path(left):
        words += ["--model.backbone.folder", left, "--name", f"{config.name}-test"]
    return words


def _saved_backbone(data: Any) -> str:
    """Returns the folder whose backbone a configuration tests; "" if it builds another one."""
    for key in ("model", "init_args", "backbone", "init_args"):
        data = data.get(key) if isinstance(data, Mapping) else None
    return str(data.get("folder") or "") if isinstance(data, Mapping) else ""


def _experiment(config: Namespace) -> ExperimentFolder:
    return ExperimentFolder(Path(config.runs) / config.experiment)


def _shown(path: Path) -> str:
    """Returns the short name of a packaged configuration; the path of another one."""
    if path.resolve().is_relative_to(CONFIGS.resolve()):
        return str(path.resolve().relative_to(CONFIGS.resolve())).removesuffix(SUFFIX)
    return str(path)
