"""A job that SLURM ends and starts again trains the weights of one that was left alone."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, final

import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer

from tests.fixtures.slurm import Slurm
from tests.fixtures.tiny_experiment import (
    CONFIGS,
    REPO,
    Experiment,
    trained_weights,
    write_experiment,
)

NUM_STEPS = 40


@final
class StepsNoted(Callback):
    """Writes the number of each step that ends into a file, and takes time for it."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.is_global_zero:
            with self.path.open("a") as file:
                file.write(f"{trainer.global_step}\n")
        time.sleep(0.1)


def overlay(folder: Path, steps: Path) -> Path:
    """Forty steps, of which no checkpoint is kept but the one that a signal leaves."""
    saving = {"save_last": True, "save_top_k": 0, "every_n_train_steps": 10 * NUM_STEPS}
    callbacks = [
        {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": saving},
        {"class_path": "tests.end_to_end.test_slurm.StepsNoted", "init_args": {"path": str(steps)}},
    ]
    limits = {"max_steps": NUM_STEPS, "limit_train_batches": NUM_STEPS, "limit_val_batches": 0}
    path = folder / f"{steps.stem}.yaml"
    path.write_text(yaml.safe_dump({"trainer": limits | {"callbacks": callbacks}}))
    return path


def start(
    experiment: Experiment, config: Path, variables: list[dict[str, str]], *more: str
) -> list[subprocess.Popen[bytes]]:
    """Starts the two tasks of a job, the second one three seconds before the first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = experiment.command("trunk", "--config", str(CONFIGS / "strategy/ddp.yaml"))
    command += ["--config", str(config), "--trainer.accelerator", "cpu", *more]
    command += ["--runs", str(config.with_suffix(""))]

    tasks = []
    for own in reversed(variables):
        environment = os.environ | own | {"MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        words = [sys.executable, "-m", "experiments.run", *command]
        task = subprocess.Popen(words, cwd=REPO, env=environment, start_new_session=True)
        tasks.insert(0, task)
        time.sleep(3 if len(tasks) == 1 else 0)
    return tasks


def cut(tasks: list[subprocess.Popen[bytes]], signum: int, steps: Path) -> None:
    """Sends a signal to all processes of a job, reading ones included, at its next step."""
    before = steps.read_text() if steps.is_file() else ""
    while tasks[0].poll() is None and not (steps.is_file() and steps.read_text() != before):
        time.sleep(0.01)
    for task in tasks:
        os.killpg(task.pid, signum)
    assert tasks[0].wait(300) == 143
    tasks[1].wait(300)


@pytest.mark.slow
@pytest.mark.timeout(900)  # eight processes import everything, two of them at once
def test_a_requeued_job_goes_on_at_its_last_step(tiny_root: Path, tmp_path: Path) -> None:
    experiment = write_experiment(tmp_path, tiny_root)
    slurm, steps = Slurm.write(tmp_path / "bin"), tmp_path / "cut.txt"
    config = overlay(tmp_path, steps)

    for restarts, signum in enumerate((signal.SIGTERM, signal.SIGUSR1)):
        job = [slurm.variables(rank, SLURM_RESTART_COUNT=str(restarts)) for rank in (0, 1)]
        workers = ["--data.num_workers", str(restarts)]
        cut(start(experiment, config, job, *workers), signum, steps)
        assert slurm.calls == (restarts + 1) * ["show job 7001", "requeue 7001"]

        (run,) = (tmp_path / "cut/tiny").glob("*-trunk-*")
        last = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"]
        assert last == int(steps.read_text().split()[-1]) < NUM_STEPS
    assert not list(run.glob("**/hpc_ckpt*")), "Lightning's own handler would leave one"

    again = [slurm.variables(rank, SLURM_RESTART_COUNT="2") for rank in (0, 1)]
    assert [task.wait(300) for task in start(experiment, config, again)] == [0, 0]
    assert list(map(int, steps.read_text().split())) == list(range(1, NUM_STEPS + 1))
    assert (tmp_path / "cut/tiny/trunk").resolve() == run.resolve(), "in the same folder"
    assert not list((tmp_path / "cut/tiny").glob(".launch-*"))

    other = overlay(tmp_path, tmp_path / "whole.txt")
    whole = [slurm.variables(rank, job="7002") for rank in (0, 1)]
    assert [task.wait(300) for task in start(experiment, other, whole)] == [0, 0]
    expected, found = (trained_weights(tmp_path / name / "tiny") for name in ("whole", "cut"))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
