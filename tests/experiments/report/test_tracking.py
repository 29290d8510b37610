"""Runs are found, compared and shown: HParams, custom scalars, `report list` and `report diff`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks.hparams import LAYOUT, BestMetrics, HParams
from callbacks.run_record import mark_started, note_reason
from experiments.report.__main__ import main
from experiments.report.data.runs import diff_runs, list_runs
from tests.fixtures.tiny_experiment import Experiment


def test_the_best_of_a_metric_is_its_highest_or_lowest() -> None:
    best = BestMetrics()
    for recall, loss in ((0.1, 3.0), (0.5, 2.0), (0.3, 2.5), (float("nan"), float("nan"))):
        best.add({"val/recall@1": recall, "train/loss": loss})
    assert best.values == {"val/recall@1": 0.5, "train/loss": 2.0}


def test_settings_are_plain() -> None:
    found = HParams({"a": 1, "b": None, "c": [1, 2], "d": True, "e": "x"}).settings
    assert found == {"a": 1, "b": "None", "c": "[1, 2]", "d": True, "e": "x"}


def test_the_tabs_of_tensorboard_are_filled(clip_experiment: Experiment) -> None:
    run = EventAccumulator(str((clip_experiment.folder / "embedder").resolve()))
    run.Reload()
    shown = run.PluginTagToContent("hparams")
    assert set(shown) >= {"_hparams_/experiment", "_hparams_/session_start_info"}
    assert b"data.init_args.batch_size" in shown["_hparams_/session_start_info"]
    assert "best/train/loss" in run.Tags()["scalars"]
    assert "custom_scalars__config__" in run.PluginTagToContent("custom_scalars")
    tags = [tag for charts in LAYOUT.values() for _, names in charts.values() for tag in names]
    logged = run.Tags()["scalars"]
    assert any(re.fullmatch(tags[-1], name) for name in logged)


def test_runs_are_listed_newest_first(
    clip_experiment: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["list", str(clip_experiment.folder)])
    # Other tests may have left runs that failed, whose reasons stand below the table.
    printed = capsys.readouterr().out.splitlines()
    lines = [line for line in printed if line.startswith("|")][2:]
    assert len(lines) == len({line.split("|")[1] for line in lines}) >= 13
    stamps = [line.split("|")[1].strip()[:15] for line in lines]
    assert stamps == sorted(stamps, reverse=True)
    assert sum("| finished" in line for line in lines) >= 13, "others may have left broken ones"
    assert any("test/recall@1" in line for line in lines)


def test_a_run_that_ended_before_its_end_is_listed_with_the_reason(tmp_path: Path) -> None:
    for name, reason in (
        ("3-x", "failed: ValueError: why"),
        ("2-x", "unfinished: SIGTERM"),
        ("1-x", ""),
    ):
        (tmp_path / name).mkdir()
        mark_started(tmp_path / name, "abc")
        note_reason(tmp_path / name, reason)
        note_reason(tmp_path / name, "failed: an error that followed from it")
    note_reason(tmp_path / "gone", "failed: x")

    lines = list_runs(tmp_path).splitlines()
    assert [line.split("|")[2].strip() for line in lines[2:5]] == ["failed", "unfinished", "failed"]
    assert lines[5:8] == ["", "3-x failed: ValueError: why", "2-x unfinished: SIGTERM"]


def test_a_difference_names_settings_and_metrics(clip_experiment: Experiment) -> None:
    folder = clip_experiment.folder
    text = diff_runs(folder / "judge-a", folder / "judge-b")
    assert re.search(r"\| data\.init_args\.fold +\| a +\| b +\|", text)
    assert "batch_size" not in text, "only what differs"
    assert re.search(r"\| train/loss +\| [\d.]+ +\| [\d.]+ +\| [+-]", text)
    same = diff_runs(folder / "judge-a", folder / "judge-a")
    assert same.startswith("No setting differs.")


def test_what_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="is no run of"):
        main(["diff", str(tmp_path), str(tmp_path)])
    with pytest.raises(FileNotFoundError, match="holds no run"):
        list_runs(tmp_path)
