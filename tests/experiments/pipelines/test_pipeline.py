"""The pipeline: what is done is not done again, what is missing is, what broke off goes on."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml

import experiments.report  # noqa: F401  (the line below finds its module)
from experiments.cli.messages import quieten
from experiments.pipeline import Stage, is_done, main
from mmemb.storage.shard_index import ShardIndex
from mmemb.storage.unfinished import UNFINISHED_STATUS
from tests.fixtures.tiny_experiment import (
    Experiment,
    in_process,
    run,
    run_pipeline,
    settings_kept,
)

report_build = sys.modules["experiments.report.build"]  # the package's `build` is the function


def state_of(folder: Path) -> dict[str, int]:
    """Every file that was written, and when."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path): path.stat().st_mtime_ns for path in files}


@pytest.mark.slow
def test_a_second_run_generates_and_trains_nothing(clip_experiment: Experiment) -> None:
    with patch.object(report_build, "git_state", lambda folder: (None, "")):  # edited meanwhile?
        run_pipeline(clip_experiment)
        before = state_of(clip_experiment.folder)
        assert run_pipeline(clip_experiment) == []
    assert state_of(clip_experiment.folder) == before, "not even a report"


@pytest.mark.slow
def test_a_lost_rationale_shard_alone_is_written_again_with_the_same_bytes(
    clip_experiment: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = clip_experiment.folder / "rationales"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    times = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tar")}
    lost = "queries-000002.tar"
    (folder / lost).unlink()
    assert run_pipeline(clip_experiment, "--until", "trunk") == ["rationales"]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    changed = {n for n, t in times.items() if (folder / n).stat().st_mtime_ns != t}
    assert changed == {lost}
    assert "4 shards there, 1 to make" in capsys.readouterr().out
    assert done(clip_experiment, "judge-a"), "nothing follows from it"


def done(experiment: Experiment, name: str) -> bool:
    """Whether the pipeline would skip a stage."""
    quieten()
    command = experiment.command(name, "--runs", str(experiment.runs))
    stage = Stage(name, command[0], command[2], tuple(command[3:]))
    with settings_kept():
        return is_done(stage, ())


def test_a_truncated_shard_is_not_trusted(clip_experiment: Experiment) -> None:
    shard = clip_experiment.folder / "depth_values/queries-000001.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    assert not done(clip_experiment, "depth_values")
    run(clip_experiment.command("depth_values", "--runs", str(clip_experiment.runs)))
    assert shard.read_bytes() == whole
    assert done(clip_experiment, "depth_values")


def test_another_setting_is_another_stage(clip_experiment: Experiment) -> None:
    overlay = clip_experiment.overlays / "trunk.yaml"
    text = overlay.read_text()
    overlay.write_text(yaml.safe_dump(yaml.safe_load(text) | {"seed_everything": 1}))
    try:
        assert not done(clip_experiment, "trunk")
    finally:
        overlay.write_text(text)
    assert done(clip_experiment, "trunk")


def test_devices_and_loggers_are_no_setting(clip_experiment: Experiment) -> None:
    overlay = clip_experiment.overlays / "trunk.yaml"
    text = overlay.read_text()
    data = yaml.safe_load(text)
    data["trainer"] |= {"devices": 2, "strategy": "ddp", "log_every_n_steps": 50}
    overlay.write_text(yaml.safe_dump(data))
    try:
        assert done(clip_experiment, "trunk")
    finally:
        overlay.write_text(text)


def test_a_moved_link_makes_its_readers_run_again(clip_experiment: Experiment) -> None:
    """The judges read the trunk through its link: another trunk, other judges."""
    link = clip_experiment.folder / "trunk"
    target = link.readlink()
    link.unlink()
    link.symlink_to((clip_experiment.folder / "judge-a").readlink())
    try:
        assert not done(clip_experiment, "judge-b")
    finally:
        link.unlink()
        link.symlink_to(target)
    assert done(clip_experiment, "judge-b")


def test_a_dry_run_says_what_would_run(
    clip_experiment: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []
    with (
        patch("experiments.pipeline.run_stage", lambda stage, shared: ran.append(stage.name)),
        patch("experiments.pipeline.is_done", lambda stage, shared: stage.name != "gate"),
    ):
        run_alone(clip_experiment, "--dry-run")
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if "would run" in line]
    assert re.fullmatch(r"gate: would run, .* [\d.]+ minutes \(as its last run took\)", line)
    assert "all stages: about " in "\n".join(lines)
    assert ran == []


def test_a_dry_run_prepares_nothing(
    clip_experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = yaml.safe_load(clip_experiment.pipeline.read_text())
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump(data | {"prepare": ["pocket", "--out", str(tmp_path / "new")]}))
    with (
        patch("experiments.pipeline.prepare", lambda pipeline: pytest.fail("it prepares")),
        patch("experiments.pipeline.is_done", lambda stage, shared: True),
    ):
        main([str(path), "--dry-run"])
    assert "prepare: would make or check" in capsys.readouterr().out


def test_a_flag_that_does_not_fit_a_stage_names_the_stage(clip_experiment: Experiment) -> None:
    with pytest.raises(SystemExit) as raised:
        run_alone(clip_experiment, "--dry-run", "--", "--model.optimzer.lr", "1")
    assert "stage features: --model.optimzer.lr: unknown key" in str(raised.value)


def test_from_runs_a_stage_that_is_done(clip_experiment: Experiment) -> None:
    ran: list[str] = []
    with (
        patch("experiments.pipeline.run_stage", lambda stage, shared: ran.append(stage.name)),
        patch("experiments.pipeline.is_done", lambda *_: True),
    ):
        run_alone(clip_experiment, "--from", "gate", "--until", "decisions")
    assert ran == ["gate", "decisions"]


def test_depth_values_name_the_embedder_that_they_were_measured_with(
    clip_experiment: Experiment,
) -> None:
    folder = clip_experiment.folder
    embedder = json.loads((folder / "embedder/fingerprint.json").read_text())["fingerprint"]
    entries = ShardIndex.open(folder / "depth_values").entries
    assert {entry.meta["embedder"] for entry in entries} == {embedder}


def run_alone(experiment: Experiment, *arguments: str) -> None:
    with settings_kept(), patch.dict(os.environ, MMEMB_RUNS=str(experiment.runs)):
        main([str(experiment.pipeline), *arguments])


def test_arguments_behind_two_dashes_go_to_every_stage(clip_experiment: Experiment) -> None:
    seen: list[list[str]] = []
    with (
        patch(
            "experiments.pipeline.run_stage",
            lambda stage, shared: seen.append(stage.command_line(shared)),
        ),
        patch("experiments.pipeline.is_done", lambda *_: True),
    ):
        run_alone(
            clip_experiment, "--from", "features", "--until", "features", "--",
            "--seed_everything", "3",
        )  # fmt: skip
    assert seen[0][-2:] == ["--seed_everything", "3"]


@pytest.mark.slow  # the configurations of all stages are parsed: 2 s
def test_an_interrupted_stage_ends_the_pipeline_with_its_status(
    clip_experiment: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        patch("experiments.pipeline.run_module", lambda module, arguments: UNFINISHED_STATUS),
        pytest.raises(SystemExit) as end,
    ):
        run_alone(clip_experiment, "--from", "gate")
    assert end.value.code == UNFINISHED_STATUS
    assert "stage gate was interrupted before its end" in capsys.readouterr().err


def test_the_report_is_made_where_the_runs_are(clip_experiment: Experiment, tmp_path: Path) -> None:
    """`--runs` in the file, or behind `--`, moves the report too."""
    built: list[Path] = []
    data = yaml.safe_load(clip_experiment.pipeline.read_text())
    data["arguments"] = ["--runs", str(tmp_path / "elsewhere")]
    path = tmp_path / "p.yaml"
    path.write_text(yaml.safe_dump(data))
    with (
        in_process([]),
        settings_kept(),
        patch("experiments.pipeline.is_done", lambda *_: True),
        patch.object(report_build, "build", lambda folder, root: built.append(folder)),
    ):
        main([str(path)])
    assert built == [tmp_path / "elsewhere/tiny"]
