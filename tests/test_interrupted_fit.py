"""A fit that broke off goes on where it was; one of other settings starts anew."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import yaml

import experiments.report  # noqa: F401  (the line below finds its module)
from tests.tiny_experiment import (
    Experiment,
    run,
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
    trunk: Experiment, tmp_path: Path
) -> None:
    from lightning_modules import ContrastiveEmbedder

    expected = trained_weights(fit_trunk(trunk, tmp_path / "whole"))
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
    found = trained_weights(folder)
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
