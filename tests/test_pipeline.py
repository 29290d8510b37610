"""The pipeline: what is done is not done again, what is missing is, what broke off goes on."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import yaml

import experiments.report  # noqa: F401  (the line below finds its module)
from experiments.pipeline import Stage, is_done, main, read_pipeline
from experiments.run import quieten
from tests.tiny_experiment import (
    REPO,
    STAGES,
    Experiment,
    in_process,
    run,
    run_pipeline,
    settings_kept,
    write_experiment,
)

report_build = sys.modules["experiments.report.build"]  # the package's `build` is the function


def state_of(folder: Path) -> dict[str, int]:
    """Every file that was written, and when."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path): path.stat().st_mtime_ns for path in files}


def test_a_second_run_generates_and_trains_nothing(clip_experiment: Experiment) -> None:
    with patch.object(report_build, "git_state", lambda folder: (None, "")):  # edited meanwhile?
        run_pipeline(clip_experiment)
        before = state_of(clip_experiment.folder)
        assert run_pipeline(clip_experiment) == []
    assert state_of(clip_experiment.folder) == before, "not even a report"


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
    assert "4 shards exist, 1 to make" in capsys.readouterr().out
    assert done(clip_experiment, "judge-a"), "nothing follows from it"


def done(experiment: Experiment, name: str) -> bool:
    """Whether the pipeline would skip a stage."""
    quieten()
    command = experiment.command(name, "--runs", str(experiment.runs))
    stage = Stage(name, command[0], command[2], tuple(command[3:]))
    with settings_kept():
        return is_done(stage, ())


def test_a_truncated_shard_is_not_trusted(clip_experiment: Experiment) -> None:
    shard = clip_experiment.folder / "utilities/queries-000001.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    assert not done(clip_experiment, "utilities")
    run(clip_experiment.command("utilities", "--runs", str(clip_experiment.runs)))
    assert shard.read_bytes() == whole
    assert done(clip_experiment, "utilities")


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
    assert [line for line in lines if line.endswith("would run")] == ["gate: would run"]
    assert ran == []


def test_from_runs_a_stage_that_is_done(clip_experiment: Experiment) -> None:
    ran: list[str] = []
    with (
        patch("experiments.pipeline.run_stage", lambda stage, shared: ran.append(stage.name)),
        patch("experiments.pipeline.is_done", lambda *_: True),
    ):
        run_alone(clip_experiment, "--from", "gate", "--until", "decisions")
    assert ran == ["gate", "decisions"]


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


# ---- an interrupted fit


@pytest.fixture
def trunk(tiny_root: Path, tmp_path: Path) -> Experiment:
    """A trunk of four steps that saves each of them."""
    experiment = write_experiment(tmp_path, tiny_root)
    overlay = experiment.overlays / "trunk.yaml"
    data = yaml.safe_load(overlay.read_text())
    saving = {
        "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
        "init_args": {"save_last": True, "save_top_k": 0, "every_n_train_steps": 1},
    }
    data["trainer"] |= {
        "max_steps": 4, "limit_train_batches": 4, "val_check_interval": 4, "callbacks": [saving],
    }  # fmt: skip
    overlay.write_text(yaml.safe_dump(data))
    return experiment


def fit_trunk(experiment: Experiment, runs: Path) -> Path:
    run(experiment.command("trunk", "--runs", str(runs)))
    return runs / "tiny"


def weights(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "trunk/backbone/weights.pt", weights_only=True)


def test_an_interrupted_fit_goes_on_and_ends_where_it_would_have(
    trunk: Experiment, tmp_path: Path
) -> None:
    from lightning_modules import ContrastiveEmbedder

    expected = weights(fit_trunk(trunk, tmp_path / "whole"))
    usual, steps = ContrastiveEmbedder.training_step, []

    def cut(module: Any, batch: Any, batch_idx: int) -> Any:
        steps.append(batch.keys)
        if len(steps) == 3:
            raise RuntimeError("the power went out")
        return usual(module, batch, batch_idx)

    with (
        patch.object(ContrastiveEmbedder, "training_step", cut),
        pytest.raises(RuntimeError, match="power"),
    ):
        fit_trunk(trunk, tmp_path / "cut")
    folder = tmp_path / "cut/tiny"
    assert not (folder / "trunk").exists(), "nobody may take an unfinished run"
    (started,) = folder.glob("*-trunk-*")
    with patch.object(ContrastiveEmbedder, "training_step", cut):
        fit_trunk(trunk, tmp_path / "cut")
    assert len(steps) == 3 + 2, "steps 3 and 4, not all four again"
    assert steps[3] == steps[2], "the batch that broke off comes again"
    assert (folder / "trunk").resolve() == started.resolve(), "in the same folder"
    found = weights(folder)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.slow  # the default suite has 90 seconds
def test_an_interrupted_fit_of_other_settings_is_not_continued(
    trunk: Experiment, tmp_path: Path
) -> None:
    fit_trunk(trunk, tmp_path / "runs")
    folder = tmp_path / "runs/tiny"
    (first,) = folder.glob("*-trunk-*")
    record = json.loads((first / "fingerprint.json").read_text())
    (first / "fingerprint.json").write_text(json.dumps(record | {"finished": False}))
    os.rename(first, folder / "20000101-000000-trunk-old")
    run(trunk.command("trunk", "--runs", str(tmp_path / "runs"), "--seed_everything", "5"))
    assert len(list(folder.glob("*-trunk-*"))) == 2


# ---- the file


def write_pipeline(path: Path, **changed: Any) -> Path:
    stage = {"name": "trunk", "subcommand": "fit", "config": "x.yaml"}
    data = {"experiment": "e", "data_root": "d", "stages": [stage]} | changed
    path.write_text(yaml.safe_dump({k: v for k, v in data.items() if v is not None}))
    return path


def test_a_pipeline_file_is_read(tmp_path: Path) -> None:
    pipeline = read_pipeline(write_pipeline(tmp_path / "p.yaml", prepare=["pocket"]))
    assert pipeline.stages == (Stage("trunk", "fit", "x.yaml"),)
    assert pipeline.prepare == ("pocket",)
    assert all(field.name in dir(pipeline) for field in dataclasses.fields(pipeline))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"stage": []}, "stage"),
        ({"experiment": None}, "experiment"),
        ({"stages": None}, "stages"),
        ({"stages": [{"name": "a", "subcommand": "fit", "confg": "x"}]}, "confg"),
        ({"stages": [{"name": "a", "subcommand": "fit"}]}, "config"),
        ({"stages": [{"name": "a", "subcommand": "train", "config": "x"}]}, "train"),
        ({"stages": ["trunk"]}, "trunk"),
    ],
)
def test_a_mistake_in_a_pipeline_file_names_file_and_key(
    tmp_path: Path, changed: dict[str, Any], words: str
) -> None:
    path = write_pipeline(tmp_path / "p.yaml", **changed)
    with pytest.raises(SystemExit, match=rf"error: .*p\.yaml.*{words}"):
        main([str(path)])


def test_missing_or_broken_pipeline_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"error: .*nowhere\.yaml: there is no such"):
        main([str(tmp_path / "nowhere.yaml")])
    (tmp_path / "p.yaml").write_text("a: [")
    with pytest.raises(SystemExit, match=r"error: .*p\.yaml"):
        main([str(tmp_path / "p.yaml")])


def test_an_unknown_stage_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    path = write_pipeline(tmp_path / "p.yaml")
    with pytest.raises(SystemExit, match=r"no stage 'trnk'; the stages are trunk"):
        main([str(path), "--from", "trnk"])


def test_a_failing_stage_ends_the_pipeline_and_says_how_to_go_on(tmp_path: Path) -> None:
    path = write_pipeline(tmp_path / "p.yaml")
    with (
        patch("experiments.pipeline.is_done", lambda *_: False),
        patch("experiments.pipeline.run_module", lambda *_: 3),
        pytest.raises(SystemExit, match=r"stage trunk failed \(exit status 3\).*run the pipeline"),
    ):
        main([str(path)])


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


# ---- through the real command line


@pytest.mark.slow
def test_two_processes_train_and_test_what_one_does(tiny_root: Path, tmp_path: Path) -> None:
    """`python -m experiments.run ... --trainer.devices 2 --trainer.strategy ddp`."""
    found = []
    for world in ("1", "2"):
        experiment = write_experiment(tmp_path / world, tiny_root)
        more = ["--runs", str(experiment.runs), "--trainer.devices", world]
        more += ["--trainer.strategy", "ddp"] if world == "2" else []
        command = [sys.executable, "-m", "experiments.run", *experiment.command("trunk", *more)]
        done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        folders = list(experiment.folder.glob("*-trunk-*"))
        assert len(folders) == 1, "both ranks write into one folder"
        found.append((summary(experiment), weights(experiment.folder)))
    (one, one_weights), (two, two_weights) = found
    recalls = {name: value for name, value in one.items() if name.startswith("val/")}
    assert recalls
    for name, value in recalls.items():
        assert two[name] == pytest.approx(value, abs=1e-6), name
    for name, value in one_weights.items():
        torch.testing.assert_close(two_weights[name], value, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_a_stage_of_a_pipeline_may_have_two_ranks(tiny_root: Path, tmp_path: Path) -> None:
    """A stage is forked, and Lightning still finds out how to launch the other rank."""
    experiment = write_experiment(tmp_path, tiny_root)
    command = [sys.executable, "-m", "experiments.pipeline", str(experiment.pipeline)]
    command += ["--until", "trunk", "--", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    environment = os.environ | {"MMEMB_RUNS": str(experiment.runs)}
    done = subprocess.run(
        command, cwd=REPO, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "GLOBAL_RANK: 1" in done.stderr
    assert summary(experiment)


def summary(experiment: Experiment) -> dict[str, float]:
    return json.loads((experiment.folder / "trunk/summary.json").read_text())["metrics"]


@pytest.mark.slow
def test_the_whole_pipeline_through_processes_of_its_own(tiny_root: Path, tmp_path: Path) -> None:
    experiment = write_experiment(tmp_path, tiny_root)
    command = [sys.executable, "-m", "experiments.pipeline", str(experiment.pipeline)]
    environment = os.environ | {"MMEMB_RUNS": str(experiment.runs)}
    outputs = []
    for _ in range(2):
        done = subprocess.run(
            command, cwd=REPO, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        outputs.append(done.stdout)
    assert "does reasoning pay?" in (experiment.folder / "report.md").read_text()
    assert all(f"{name}: done before" in outputs[1] for name in STAGES)
