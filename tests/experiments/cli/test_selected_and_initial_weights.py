"""`--select` and `--init`: which weights a fit leaves, and which it starts from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from experiments.load import load_run
from experiments.runs.run_files import read_summary
from mmemb.storage.run_marks import run_mark
from mmemb.storage.tensor_files import read_weights
from mmemb.storage.trained_facts import read_fitted
from tests.experiments.cli.test_cli_errors import message_of
from tests.fixtures.tiny_experiment import (
    CLIP_TINY,
    Experiment,
    run,
    trained_weights,
    write_experiment,
)

SAVING = "lightning.pytorch.callbacks.ModelCheckpoint"


@pytest.fixture
def trunk(tiny_root: Path, tmp_path: Path) -> Experiment:
    """A trunk of four steps, validated after two and four; the loss is lower after two."""
    experiment = write_experiment(tmp_path, tiny_root)
    overlay = experiment.overlays / "trunk.yaml"
    data = yaml.safe_load(overlay.read_text())
    data["trainer"] |= {
        "max_steps": 4,
        "limit_train_batches": 4,
        "val_check_interval": 2,
        "callbacks": [
            {"class_path": "callbacks.RecallAtK"},
            _saving(save_last=True, save_top_k=0, every_n_train_steps=1),
            _saving(monitor="train/loss", mode="min", filename="best"),
        ],
    }
    overlay.write_text(yaml.safe_dump(data))
    return experiment


def _saving(**init_args: Any) -> dict[str, Any]:
    return {"class_path": SAVING, "init_args": init_args}


def fit(experiment: Experiment, *more: str) -> None:
    run(experiment.command("trunk", "--runs", str(experiment.runs), *more))


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return all(torch.equal(left[name], weight) for name, weight in right.items())


def backbone_of(state: dict[str, Any]) -> dict[str, Any]:
    return {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}


def test_a_run_and_all_that_reads_it_have_the_selected_weights(trunk: Experiment) -> None:
    fit(trunk, "--select", "best")
    run_folder, checkpoints = trunk.folder / "trunk", trunk.folder / "trunk/checkpoints"
    left = read_summary(run_folder).weights
    assert left is not None
    assert (left.select, left.metric, left.step) == ("best", "train/loss", 2)

    best = backbone_of(read_weights(checkpoints / "best.ckpt")["state_dict"])
    assert same(trained_weights(trunk.folder), best)
    assert same(backbone_of(dict(load_run(run_folder, models=["experiments"]).state_dict())), best)
    assert read_weights(checkpoints / "last.ckpt")["global_step"] == 4
    marks = [run_mark(run_folder)]

    # Another choice is another run; the default counts as no setting at all.
    fit(trunk)
    assert not same(trained_weights(trunk.folder), best)
    assert run_mark(run_folder) not in marks
    weights = read_summary(trunk.folder / "trunk").weights
    assert weights is not None
    assert (weights.select, weights.step) == ("last", 4)


@pytest.mark.slow
def test_a_fit_starts_from_the_weights_of_a_run(
    trunk: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(trunk, "--lr", "0")  # the weights of the seed
    fit(trunk, "--name", "other", "--seed_everything", "7", "--lr", "0")
    first, other = trunk.folder / "trunk", trunk.folder / "other"
    assert not same(trained_weights(trunk.folder), _weights(other))

    facts = read_fitted(other / "fitted.json").trained
    (other / "fitted.json").write_text(json.dumps({"facts": [*facts, "of the first run"]}))
    fit(trunk, "--name", "again", "--lr", "0", "--init", str(other))
    again = trunk.folder / "again"
    assert same(_weights(again), _weights(other))
    assert "of the first run" in read_fitted(again / "fitted.json").trained
    inputs = json.loads((again / "fingerprint.json").read_text())["inputs"]
    assert str(other) in inputs, "a changed run is another input"

    def refused(*more: str) -> str:
        return message_of(trunk.command("trunk", "--runs", str(trunk.runs), *more), capsys)

    last = str(other / "checkpoints/last.ckpt")
    assert "both name weights to start from" in refused("--init", str(other), "--ckpt_path", last)
    moved = refused("--init", str(first))
    assert f"({first.resolve()}), or give the new fit another --name" in moved
    assert "holds no saved backbone" in refused("--init", str(trunk.root))

    wide = json.loads((CLIP_TINY.with_suffix(".json")).read_text()) | {"embed_dim": 32}
    (trunk.overlays / "wide.json").write_text(json.dumps(wide))
    model = ("--model.backbone.init_args.model", str(trunk.overlays / "wide.json"))
    unlike = refused("--name", "wide", "--init", str(other), *model)
    assert "do not fit the configured OpenClipBackbone (2 weights differ in name or shape" in unlike
    assert not list(trunk.folder.glob("*wide*")), "no folder is left behind"


def _weights(folder: Path) -> dict[str, Any]:
    return dict(torch.load(folder / "backbone/weights.pt", weights_only=True))


def test_a_refused_fit_leaves_no_run(trunk: Experiment, capsys: pytest.CaptureFixture[str]) -> None:
    """It was refused when the trainer had begun, before a first batch."""
    overlay = trunk.overlays / "second.yaml"
    second = _saving(monitor="val/recall@1", mode="max", filename="second")
    overlay.write_text(yaml.safe_dump({"trainer": {"callbacks+": [second]}}))
    command = trunk.command("trunk", "--runs", str(trunk.runs), "--select", "best")
    text = message_of([*command, "--config", str(overlay)], capsys)
    assert "exactly one ModelCheckpoint must have a monitor" in text
    assert list(trunk.folder.iterdir()) == []
