"""Which step's weights a fit leaves, and that an interrupted fit leaves the same ones."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from torch import Tensor
from typing_extensions import override

from callbacks import Interruption, RunRecord, SelectedWeights, StopAtStep, run_record
from callbacks.fit_end import LAST
from experiments.cli.fit_loop import WholeFitLoop
from experiments.runs.run_files import read_summary
from mmemb.storage.signals import SIGNALS
from mmemb.storage.tensor_files import read_weights
from mmemb.storage.unfinished import Unfinished
from tests.callbacks.test_fit_end import PowerCut, Saving, Stop
from tests.fixtures.tiny_trainer import Stub, trainer_of

SCORES = {2: 0.1, 4: 0.7, 6: 0.3}
"""Metric by step: the fourth of six steps is the best."""


@final
class Scored(Saving):
    """Leaves its one number, with a metric that is best before the end."""

    scores = SCORES

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return (self.layer(torch.ones(1)) * (1 + self.global_step)).sum()

    @override
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val/score", self.scores.get(self.global_step, 0.0), batch_size=1)


@pytest.fixture(autouse=True)
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two processes of git less for each fit, and the handlers of signals as they were."""
    monkeypatch.setattr(run_record, "git_state", lambda folder: ("", ""))
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


def best(**options: Any) -> ModelCheckpoint:
    return ModelCheckpoint(**({"monitor": "val/score", "mode": "max", "filename": "b"} | options))


def fit(run: Path, *callbacks: Callback, select: Any = "best", **options: Any) -> Path:
    """Fits six steps, or goes on with them; returns the run's folder."""
    selected = SelectedWeights(select)
    record = RunRecord(str(run), "fit", "", "f", selected=selected)
    last = ModelCheckpoint(every_n_train_steps=1, save_last=True, save_top_k=0)
    more = callbacks if any(isinstance(c, ModelCheckpoint) for c in callbacks) else [best()]
    given = [record, last, *dict.fromkeys([*more, *callbacks])]
    for checkpoint in given:
        if isinstance(checkpoint, ModelCheckpoint):
            checkpoint.dirpath = str(run / "checkpoints")

    steps: dict[str, Any] = {"max_steps": 6, "limit_train_batches": 6, "val_check_interval": 2}
    trainer = trainer_of(
        run,
        enable_checkpointing=True,
        callbacks=given,
        **(steps | {"limit_val_batches": 1.0} | options),
    )
    trainer.callbacks += [selected, StopAtStep(), Interruption()]
    trainer.fit_loop = WholeFitLoop.of(trainer)

    batches = [torch.ones(1)] * 8
    data = Stub(train=lambda rank, world: batches, val=lambda rank, world: batches[:1])
    torch.manual_seed(0)
    newest = run / LAST
    trainer.fit(Scored(), datamodule=data, ckpt_path=str(newest) if newest.is_file() else None)
    return run


def left(run: Path) -> Tensor:
    return torch.load(run / "weights.pt", weights_only=True)["weight"]


def saved(run: Path, name: str) -> Tensor:
    return read_weights(run / "checkpoints" / name)["state_dict"]["layer.weight"]


def test_the_weights_of_the_best_checkpoint_are_left_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit(tmp_path / "best")
    assert "weights of step 4, the best by val/score (0.700)" in capsys.readouterr().out
    assert torch.equal(left(run), saved(run, "b.ckpt"))
    assert not torch.equal(left(run), saved(run, "last.ckpt"))
    assert read_weights(run / LAST)["global_step"] == 6

    summary = read_summary(run)
    assert summary.metrics["val/score"] == pytest.approx(0.7), "of the weights that are left"
    assert summary.weights is not None
    assert (summary.weights.step, summary.weights.checkpoint) == (4, "checkpoints/b.ckpt")

    last = fit(tmp_path / "last", select="last")
    assert torch.equal(left(last), saved(last, "last.ckpt"))
    assert torch.equal(saved(last, "last.ckpt"), saved(run, "last.ckpt"))


@final
class CutBeforeValidation(Callback):
    """Fails between a step, whose state is saved, and the validation that is due after it."""

    def __init__(self, step: int) -> None:
        self.step = step

    @override
    def on_validation_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError("the power went out")


EPOCHS = {"max_epochs": 3, "max_steps": -1, "limit_train_batches": 2, "val_check_interval": 1.0}
LATE = {2: 0.1, 4: 0.3, 6: 0.7}


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch")
@pytest.mark.parametrize("options", [{}, EPOCHS], ids=["steps", "epochs"])
@pytest.mark.parametrize("scores", [SCORES, LATE], ids=["early", "late"])
@pytest.mark.parametrize(
    "cut",
    [*map(Stop, (1, 3, 4, 5)), *map(CutBeforeValidation, (2, 4, 6)), PowerCut()],
    ids=lambda cut: f"{type(cut).__name__}{getattr(cut, 'step', '')}",
)
def test_an_interrupted_fit_leaves_the_same_weights(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cut: Callback,
    scores: dict[int, float],
    options: dict[str, Any],
) -> None:
    monkeypatch.setattr(Scored, "scores", scores)
    expected = left(fit(tmp_path / "whole", **options))
    with pytest.raises((RuntimeError, Unfinished)):
        fit(tmp_path / "cut", cut, **options)
    # The folder of a run may be moved, or be named from another working folder.
    run = fit((tmp_path / "cut").rename(tmp_path / "moved"), **options)
    assert torch.equal(left(run), expected)
    assert read_summary(run).weights == read_summary(tmp_path / "whole").weights


def test_an_average_is_that_of_the_best_step(tmp_path: Path) -> None:
    run = fit(tmp_path, EMAWeightAveraging(decay=0.5))
    state = read_weights(run / "checkpoints/b.ckpt")
    assert torch.equal(left(run), state["state_dict"]["layer.weight"])
    assert not torch.equal(left(run), state["current_model_state"]["layer.weight"])


def test_what_is_saved_afterwards_is_still_the_last_step(tmp_path: Path) -> None:
    @final
    class SaveLate(Callback):
        @override
        def on_fit_end(self, trainer: Trainer, *args: Any) -> None:
            trainer.save_checkpoint(tmp_path / "checkpoints/late.ckpt")

    run = fit(tmp_path, SaveLate())
    assert torch.equal(saved(run, "late.ckpt"), saved(run, "last.ckpt"))


def test_what_has_no_best_weights_is_refused(tmp_path: Path) -> None:
    def refused(words: str, *callbacks: Callback, **options: Any) -> None:
        with pytest.raises(ValueError, match=words):
            fit(tmp_path / str(len(list(tmp_path.iterdir()))), *callbacks, **options)

    refused("exactly one ModelCheckpoint must have a monitor", best(monitor=None, save_top_k=0))
    refused("those of .* monitor: val/score, val/other", best(), best(monitor="val/other"))
    refused("this fit validates nothing: prepare rows", limit_val_batches=0)
    refused("never measured in this fit", val_check_interval=6, max_steps=5)
    refused("has save_weights_only", best(save_weights_only=True))
    swa = StochasticWeightAveraging(swa_lrs=0.1, swa_epoch_start=1)
    refused("no checkpoint holds its average", swa, max_epochs=2, max_steps=-1)
