"""The real commands, in processes of their own, with one rank and two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import experiments.report  # noqa: F401  (the line below finds its module)
from tests.fixtures.tiny_experiment import (
    CONFIGS,
    REPO,
    STAGES,
    Experiment,
    trained_weights,
    write_experiment,
)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_train_and_test_what_one_does(
    tiny_root: Path, tmp_path: Path, strategy: str
) -> None:
    """`python -m experiments.run ... --config experiments/configs/strategy/NAME.yaml`."""
    found = []
    for name in ("one", strategy):
        experiment = write_experiment(tmp_path / name, tiny_root)
        more = ["--runs", str(experiment.runs)]
        more += [] if name == "one" else ["--config", str(CONFIGS / f"strategy/{name}.yaml")]
        command = [sys.executable, "-m", "experiments.run", *experiment.command("trunk", *more)]
        done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        folders = list(experiment.folder.glob("*-trunk-*"))
        assert len(folders) == 1, "both ranks write into one folder"
        found.append((summary(experiment), trained_weights(experiment.folder)))
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
