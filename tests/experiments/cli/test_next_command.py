"""The command that a fit or a test prints at its end: the right one, in the form that was typed."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import Namespace

from experiments.cli.config_files import CONFIGS
from experiments.cli.experiment_cli import parse
from experiments.cli.messages import quieten
from experiments.cli.next_command import command_line, next_line
from tests.fixtures.tiny_experiment import settings_kept

TRAIN = [CONFIGS / "base.yaml", CONFIGS / "own/train.yaml", CONFIGS / "backbone/clip_tiny.yaml"]
OWN = {"runs": "runs", "experiment": "own", "data_root": "data/own", "name": "train"}


@pytest.fixture(autouse=True)
def typed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module in a shell without variables of ours."""
    monkeypatch.setattr("sys.argv", ["/checkout/experiments/run.py", "fit"])
    for name in ("MMEMB_ROOT", "MMEMB_RUNS"):
        monkeypatch.delenv(name, raising=False)


def line(
    subcommand: str = "fit", files: list[Path] = TRAIN, ranks: bool = False, **keys: Any
) -> str:
    return next_line(Namespace(OWN | keys), subcommand, files, ranks)


def test_a_fit_of_own_data_is_tested_next() -> None:
    assert line() == "next: python -m experiments.run test --config own/test"
    elsewhere = line(runs="out", experiment="mine", data_root="my data")
    assert elsewhere == (
        "next: python -m experiments.run test --config own/test --experiment mine "
        "--data_root 'my data' --runs out"
    )


def test_a_fit_of_another_name_is_tested_under_its_own() -> None:
    words = shlex.split(line(name="again").removeprefix("next: python -m experiments.run "))
    quieten()
    with settings_kept():
        config = parse(words)
    assert config.model.init_args.backbone.init_args.folder == "runs/own/again/backbone"
    assert config.name == "again-test"


def test_a_test_that_ranks_is_reported_next() -> None:
    assert line("test", ranks=True) == "next: python -m experiments.report build runs/own"
    assert line("test") == line("validate") == line("predict", ranks=True) == ""
    assert line(files=[CONFIGS / "pocket/trunk.yaml"]) == "", "no file beside it tests a backbone"


def test_the_form_is_that_which_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/env/bin/mmemb", "fit"])
    assert command_line(("test", "--config", "own/test")) == "mmemb test --config own/test"
    monkeypatch.setenv("MMEMB_ROOT", "/my work")
    report = command_line(("report", "build", "runs/own"))
    assert report == "mmemb report --root '/my work' build runs/own"


def test_a_stage_of_a_pipeline_prints_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multiprocessing.parent_process", lambda: "the pipeline")
    assert line() == ""
