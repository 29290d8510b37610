"""Callbacks from a second file are added to those of the first one, or said to drop them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments.cli.dropped_callbacks import dropped_callbacks
from tests.fixtures.tiny_experiment import run, write_experiment


def fit(folder: Path, root: Path, name: str, **arguments: Any) -> Path:
    """A trunk of four steps, validated after two, with a callback from a file of its own."""
    experiment = write_experiment(folder, root)
    # Without its module, as Lightning allows it.
    block = {"class_path": name, "init_args": arguments}
    overlay = folder / "callback.yaml"
    limits = {"max_steps": 4, "limit_train_batches": 4, "val_check_interval": 2}
    overlay.write_text(yaml.safe_dump({"trainer": limits | {"callbacks+": [block]}}))

    run(experiment.command("trunk", "--runs", str(experiment.runs), "--config", str(overlay)))
    metrics = json.loads((experiment.folder / "trunk/summary.json").read_text())["metrics"]
    assert "val/recall@1" in metrics, "RecallAtK of the first file is still there"
    return (experiment.folder / "trunk").resolve()


def tags(found: Path) -> dict[str, int]:
    """The scalars of a run, each with the step of its last value."""
    events = EventAccumulator(str(found))
    events.Reload()
    return {name: events.Scalars(name)[-1].step for name in events.Tags()["scalars"]}


def test_early_stopping_from_a_second_file_ends_the_fit(
    tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stop = {"monitor": "val/recall@1", "mode": "max", "stopping_threshold": -1.0}
    found = fit(tmp_path, tiny_root, "EarlyStopping", **stop)
    assert tags(found)["train/loss"] == 1, "the second of four steps, counted from 0"
    assert (found / "backbone").is_dir(), "converged, so it is finished"
    assert "note:" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_checkpoint_callback_of_ones_own_saves_beside_ours(
    tiny_root: Path, tmp_path: Path
) -> None:
    best = {"monitor": "val/recall@1", "mode": "max", "filename": "best"}
    found = fit(tmp_path, tiny_root, "ModelCheckpoint", **best)
    assert (found / "checkpoints/best.ckpt").is_file()


@pytest.mark.slow
def test_the_learning_rate_is_monitored(tiny_root: Path, tmp_path: Path) -> None:
    found = fit(tmp_path, tiny_root, "LearningRateMonitor", logging_interval="step")
    assert any(name.startswith("lr-") for name in tags(found))


@pytest.mark.slow
def test_the_rich_progress_bar_shows_the_steps(
    tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(tmp_path, tiny_root, "RichProgressBar", leave=True)
    assert "4/4" in capsys.readouterr().out


def test_a_file_that_replaces_the_callbacks_of_another_is_told_what_it_drops(
    tmp_path: Path,
) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    recall = {"class_path": "callbacks.RecallAtK", "init_args": {"k": [1]}}
    first.write_text(yaml.safe_dump({"trainer": {"callbacks": [recall, "ModelCheckpoint"]}}))
    second.write_text(yaml.safe_dump({"trainer": {"callbacks+": {"class_path": "x.Timer"}}}))

    left = ["lightning.pytorch.callbacks.ModelCheckpoint", "x.Timer"]
    (line,) = dropped_callbacks([first, second], left)
    assert f"trainer.callbacks of {first}, which drops RecallAtK. To keep them, write" in line
    assert dropped_callbacks([first, second], [*left, "callbacks.RecallAtK"]) == []
