"""Fits that are started in one second: each keeps its result, and none is written by two."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from multiprocessing.context import ForkProcess
from pathlib import Path

import pytest
import torch
import yaml

from mmemb.storage.locks import LOCK
from tests.end_to_end.test_interrupted_fit import trunk  # noqa: F401  (a fixture)
from tests.experiments.cli.test_cli_errors import message_of
from tests.fixtures.tiny_experiment import REPO, Experiment, run

pytestmark = pytest.mark.slow


def start(experiment: Experiment, runs: Path, *more: str) -> ForkProcess:
    """A fit in a process of its own, which needs no time for imports."""
    command = experiment.command("trunk", "--runs", str(runs), *more)
    process = multiprocessing.get_context("fork").Process(target=run, args=(command,))
    process.start()
    return process


def weights_by_seed(runs: Path) -> dict[int, dict[str, torch.Tensor]]:
    """The weights of every run, by the seed in its configuration."""
    found = {}
    for folder in runs.glob("tiny/*-trunk-*"):
        seed = yaml.safe_load((folder / "config.yaml").read_text())["seed_everything"]
        assert seed not in found, "each seed once"
        found[seed] = torch.load(folder / "backbone/weights.pt", weights_only=True)
    return found


def test_eight_seeds_at_once_keep_eight_results(
    trunk: Experiment,  # noqa: F811
    tmp_path: Path,
) -> None:
    together = [
        start(trunk, tmp_path / "together", "--seed_everything", str(seed)) for seed in range(8)
    ]
    for process in together:
        process.join()
    assert [process.exitcode for process in together] == [0] * 8

    found = weights_by_seed(tmp_path / "together")
    assert sorted(found) == list(range(8))
    for seed in range(8):
        start(trunk, tmp_path / "alone", "--seed_everything", str(seed)).join()
    for seed, expected in weights_by_seed(tmp_path / "alone").items():
        assert all(torch.equal(found[seed][name], value) for name, value in expected.items())


def test_the_same_command_twice_ends_the_second_with_a_sentence(
    trunk: Experiment,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    more = ["--trainer.max_steps", "4000", "--trainer.limit_train_batches", "4000"]
    more += ["--trainer.limit_val_batches", "0"]
    first = start(trunk, tmp_path, *more)
    while first.is_alive() and not list(tmp_path.glob(f"tiny/*-trunk-*/{LOCK}")):
        time.sleep(0.05)
    try:
        text = message_of(trunk.command("trunk", "--runs", str(tmp_path), *more), capsys)
        assert f"is being written by process {first.pid} on" in text
        assert first.is_alive(), "it was still running"
    finally:
        first.kill()
        first.join()
    assert len(list(tmp_path.glob("tiny/*-trunk-*"))) == 1


def test_ranks_of_torchrun_share_a_folder(
    trunk: Experiment,  # noqa: F811
    tmp_path: Path,
) -> None:
    command = trunk.command("trunk", "--runs", str(tmp_path), "--trainer.devices", "2")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launched = subprocess.run(
        [
            *(*launcher, "--nproc_per_node", "2", "-m", "experiments.run"),
            *(*command, "--trainer.strategy", "ddp"),
        ],
        cwd=REPO,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert launched.returncode == 0, launched.stderr
    assert len(list(tmp_path.glob("tiny/*-trunk-*"))) == 1
    assert not list(tmp_path.glob("tiny/.launch-*"))
