"""A fit that broke off goes on where it was; one of other settings starts anew."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint, Timer

from experiments.report.data.runs import list_runs
from tests.fixtures.tiny_experiment import (
    CONFIGS,
    REPO,
    Experiment,
    run,
    settings_kept,
    trained_weights,
    write_experiment,
)


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


def test_an_interrupted_fit_goes_on_and_ends_where_it_would_have(
    trunk: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lightning_modules import ContrastiveEmbedder

    expected = trained_weights(fit_trunk(trunk, tmp_path / "whole"))
    assert "pocket-trunk.yaml, which drops RecallAtK." in capsys.readouterr().err
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
    assert "failed: RuntimeError: the power went out" in list_runs(folder)
    assert (started / "checkpoints/last.ckpt.previous").is_file(), "in case the last one is broken"
    with patch.object(ContrastiveEmbedder, "training_step", cut):
        fit_trunk(trunk, tmp_path / "cut")
    assert len(steps) == 3 + 2, "steps 3 and 4, not all four again"
    assert steps[3] == steps[2], "the batch that broke off comes again"
    assert (folder / "trunk").resolve() == started.resolve(), "in the same folder"
    assert "failed" not in list_runs(folder)
    found = trained_weights(folder)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.slow  # the default suite asks in tests/callbacks/test_fit_end.py
def test_a_fit_cut_before_its_weights_were_written_writes_them(
    trunk: Experiment, tmp_path: Path
) -> None:
    from experiments.pipeline import Stage, is_done
    from lightning_modules import ContrastiveEmbedder

    expected = trained_weights(fit_trunk(trunk, tmp_path / "whole"))

    def cut(module: Any) -> None:
        raise RuntimeError("the power went out")

    with (
        patch.object(ContrastiveEmbedder, "on_train_end", cut),
        pytest.raises(RuntimeError, match="power"),
    ):
        fit_trunk(trunk, tmp_path / "cut")
    command = trunk.command("trunk", "--runs", str(tmp_path / "cut"))
    stage = Stage("trunk", command[0], command[2], tuple(command[3:]))
    with settings_kept():
        assert not is_done(stage, ())
    found = trained_weights(fit_trunk(trunk, tmp_path / "cut"))
    assert all(torch.equal(found[name], value) for name, value in expected.items())

    summaries = [
        json.loads((tmp_path / name / "tiny/trunk/summary.json").read_text())["metrics"]
        for name in ("whole", "cut")
    ]
    assert summaries[0].keys() == summaries[1].keys()
    assert summaries[0]["train/loss"] == summaries[1]["train/loss"]

    # A backbone that is lost later is written again from the same checkpoint.
    (tmp_path / "cut/tiny/trunk/backbone/weights.pt").unlink()
    with settings_kept():
        assert not is_done(stage, ())
    found = trained_weights(fit_trunk(trunk, tmp_path / "cut"))
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert len(list((tmp_path / "cut/tiny").glob("*-trunk-*"))) == 1


@pytest.mark.slow
def test_a_time_limit_ends_with_a_status_and_the_same_command_goes_on(
    trunk: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = trained_weights(fit_trunk(trunk, tmp_path / "whole"))
    usual = Timer.time_elapsed

    def elapsed(timer: Timer, *args: Any) -> float:
        return usual(timer) + 10**6 * (steps() >= 2)

    def steps() -> int:
        return len(saved_steps)

    saved_steps: list[int] = []
    save = ModelCheckpoint._save_last_checkpoint

    def note(checkpoint: ModelCheckpoint, *args: Any) -> None:
        saved_steps.append(1)
        save(checkpoint, *args)

    limit = ["--runs", str(tmp_path / "cut"), "--trainer.max_time", "00:01:00:00"]
    with (
        patch.object(Timer, "time_elapsed", elapsed),
        patch.object(ModelCheckpoint, "_save_last_checkpoint", note),
        pytest.raises(SystemExit) as end,
    ):
        run(trunk.command("trunk", *limit))
    assert end.value.code == 75
    assert "of 4, not finished. The same command goes on from" in capsys.readouterr().err
    assert not (tmp_path / "cut/tiny/trunk").exists()

    run(trunk.command("trunk", *limit))
    found = trained_weights(tmp_path / "cut/tiny")
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def start(experiment: Experiment, runs: Path, *more: str) -> subprocess.Popen[bytes]:
    """`experiments.run fit` in a process of its own; one thread, so that sums round alike."""
    command = [sys.executable, "-m", "experiments.run"]
    command += experiment.command("trunk", "--runs", str(runs), *more)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=REPO, env=environment, stdout=subprocess.DEVNULL)


@pytest.mark.slow  # half a minute: every process imports everything
def test_killed_at_random_steps_it_ends_in_the_same_weights(
    trunk: Experiment, tmp_path: Path
) -> None:
    """kill -9, three times, and another number of reading processes each time."""
    steps = ["--trainer.max_steps", "60", "--trainer.limit_train_batches", "60"]
    steps += ["--trainer.limit_val_batches", "0"]
    whole = start(trunk, tmp_path / "whole", *steps)
    assert whole.wait(120) == 0
    random, killed = Random(0), []
    for workers in (0, 1, 2):
        process = start(trunk, tmp_path / "cut", *steps, "--data.num_workers", str(workers))
        before = {path: path.stat().st_mtime_ns for path in saved(tmp_path / "cut")}
        while process.poll() is None and not any(
            path.stat().st_mtime_ns != before.get(path) for path in saved(tmp_path / "cut")
        ):
            time.sleep(0.01)
        time.sleep(random.uniform(0.05, 0.4))
        process.send_signal(signal.SIGKILL)
        killed.append(process.wait())
    assert -signal.SIGKILL in killed, "at least one was really cut"
    assert start(trunk, tmp_path / "cut", *steps).wait(120) == 0
    assert len(list((tmp_path / "cut/tiny").glob("*-trunk-*"))) == 1, "all in one run"
    expected, found = (trained_weights(tmp_path / name / "tiny") for name in ("whole", "cut"))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.slow
@pytest.mark.timeout(900)  # six processes import everything, two of them at once
@pytest.mark.parametrize("more", [[], ["--config", str(CONFIGS / "strategy/ddp.yaml")]])
def test_a_signal_ends_a_fit_with_its_status_and_the_same_command_goes_on(
    trunk: Experiment, tmp_path: Path, more: list[str]
) -> None:
    """What a scheduler does before it kills."""
    steps = ["--trainer.max_steps", "20", "--trainer.limit_train_batches", "20", *more]
    steps += ["--trainer.limit_val_batches", "0"]
    process = start(trunk, tmp_path / "cut", *steps, "--data.num_workers", "1")
    while process.poll() is None and not saved(tmp_path / "cut"):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 143
    (last,) = saved(tmp_path / "cut")
    step = torch.load(last, weights_only=True)["global_step"]
    assert 1 <= step < 20
    assert not (tmp_path / "cut/tiny/trunk").exists()

    for name in ("cut", "whole"):
        assert start(trunk, tmp_path / name, *steps).wait(300) == 0
    expected, found = (trained_weights(tmp_path / name / "tiny") for name in ("whole", "cut"))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.slow
def test_a_signal_ends_predict_and_the_pipeline_around_it(tiny_root: Path, tmp_path: Path) -> None:
    experiment = write_experiment(tmp_path, tiny_root)
    command = [sys.executable, "-m", "experiments.pipeline", str(experiment.pipeline)]
    environment = os.environ | {"MMEMB_RUNS": str(experiment.runs), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=REPO, env=environment, start_new_session=True)
    while process.poll() is None and not list(experiment.folder.glob("*-rationales-*")):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 143
    left = list((experiment.folder / "rationales").glob("*"))
    assert all(path.suffix in (".tar", ".json") for path in left), "whole or absent"
    done = subprocess.run(
        [*command, "--until", "rationales"], cwd=REPO, env=environment, check=False
    )
    assert done.returncode == 0


def saved(runs: Path) -> list[Path]:
    """The checkpoints there are."""
    return list(runs.glob("tiny/*-trunk-*/checkpoints/last.ckpt"))


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
