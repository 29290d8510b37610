"""Signals end a run in order, and a checkpoint is of a whole step wherever it was saved."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, final
from unittest.mock import patch

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from callbacks.checkpoint_io import WholeCheckpointIO
from callbacks.fit_end import LAST
from callbacks.interruption import Interruption
from datamodules.stream import StepStream
from mmemb.storage.signals import SIGNALS, Interrupted, exit_on_signals
from tests.fixtures.slurm import Slurm
from tests.fixtures.tiny_trainer import Items, Stub, trainer_of

STEPS = [(torch.randn(3, generator=torch.Generator().manual_seed(n)), ()) for n in range(99)]


@final
class Line(LightningModule):
    """Its weights remember every batch and their order."""

    def __init__(self, do: Callable[[int], None] = lambda batch: None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.do = nn.Linear(3, 1), do
        self.seen: list[int] = []
        self.validated: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen.append(batch_idx)
        self.do(len(self.seen))
        return self.layer(batch).square().sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.validated.append(batch)
        self.do(-len(self.validated))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.1)


def fit(folder: Path, module: Line, checkpoint: Path | None = None, **more: Any) -> Line:
    """Twelve micro-batches, two a step; `saving` says when checkpoints are saved."""
    saving = more.pop("saving", {"every_n_train_steps": 1})
    keeping = ModelCheckpoint(
        folder / "checkpoints", **{"save_last": True, "save_top_k": 0, **saving}
    )
    settings = {"accumulate_grad_batches": 2, "max_steps": 6, "limit_train_batches": 12}
    callbacks = [*more.pop("callbacks", []), keeping]
    trainer = trainer_of(
        folder,
        **settings | {"enable_checkpointing": True, "plugins": [WholeCheckpointIO()]} | more,
        callbacks=callbacks,
    )
    trainer.callbacks.append(Interruption())
    data = Stub(train=lambda rank, world: StepStream(STEPS), val=lambda rank, world: Items([7, 8]))
    with patch.object(data, "train_dataloader", lambda: StepStream(STEPS)):
        trainer.fit(module, data, ckpt_path=checkpoint)
    return module


def weights(module: Line) -> list[float]:
    return [float(x) for p in module.parameters() for x in p.detach().flatten()]


@pytest.fixture(autouse=True)
def process() -> Iterator[None]:
    """One with the usual handlers, and without the timer that would end the tests."""
    before = {signum: signal.signal(signum, signal.SIG_DFL) for signum in SIGNALS}
    with patch.object(threading, "Timer"):
        yield
    assert {signum: signal.getsignal(signum) for signum in SIGNALS} == dict.fromkeys(
        SIGNALS, signal.SIG_DFL
    ), "they are put back"
    for signum, handler in before.items():
        signal.signal(signum, handler)


def test_a_signal_that_is_ignored_stays_so() -> None:
    """A shell without job control starts its background processes so."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with exit_on_signals():
        os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    return weights(fit(tmp_path_factory.mktemp("whole"), Line()))


def dies_in(batch: int) -> Callable[[int], None]:
    def do(now: int) -> None:
        if now == batch:
            raise RuntimeError("the power went out")

    return do


@pytest.mark.parametrize(
    ("saving", "more"),
    [
        ({"train_time_interval": timedelta(0)}, {}),  # behind every micro-batch
        pytest.param(  # inside every other step
            {"save_top_k": 1},
            {"val_check_interval": 3, "limit_val_batches": 2},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"every_n_train_steps": 1, "save_on_exception": True}, {}, marks=pytest.mark.slow
        ),
    ],
)
@pytest.mark.parametrize("batch", [6, pytest.param(9, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:Checkpoint directory")  # it is that of the same run
def test_a_fit_that_is_cut_inside_a_step_ends_as_the_undisturbed_one(
    tmp_path: Path, undisturbed: list[float], saving: Any, more: Any, batch: int
) -> None:
    more |= {"saving": saving}
    last = tmp_path / LAST
    with pytest.raises(RuntimeError, match="power"):
        fit(tmp_path, Line(dies_in(batch)), **more)
    again = Line(dies_in(2))  # the first step that goes on is cut in its middle, too
    with pytest.raises(RuntimeError, match="power"):
        fit(tmp_path, again, last, **more)
    found = fit(tmp_path, Line(), last, **more)
    assert len(found.seen) < 12, "it goes on"
    assert weights(found) == undisturbed


def sends(signum: int, at: int) -> Callable[[int], None]:
    def do(now: int) -> None:
        if now == at:
            os.kill(os.getpid(), signum)

    return do


@pytest.mark.parametrize(
    ("signum", "status"),
    [
        (signal.SIGTERM, 143),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((signal.SIGINT, 130), (signal.SIGUSR1, 143))
        ),
    ],
)
@pytest.mark.parametrize("at", [3, pytest.param(4, marks=pytest.mark.slow)])
def test_a_signal_ends_a_fit_behind_its_step(
    tmp_path: Path, undisturbed: list[float], signum: int, status: int, at: int
) -> None:
    cut, more = Line(sends(signum, at)), {"saving": {"every_n_train_steps": 5}}
    with pytest.raises(Interrupted) as interrupted, exit_on_signals():
        fit(tmp_path, cut, **more)
    assert interrupted.value.code == status
    assert interrupted.value.message.startswith(signal.Signals(signum).name)
    assert "step 2 of 6, not finished. The same command goes on from" in interrupted.value.message
    assert len(cut.seen) == 4, "to the end of the second step"
    found = fit(tmp_path, Line(), tmp_path / LAST, **more)
    assert len(found.seen) == 8
    assert weights(found) == undisturbed


def test_under_slurm_one_handler_requeues_the_job(
    tmp_path: Path, undisturbed: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning's own would save `hpc_ckpt_1.ckpt` and requeue it, too."""
    slurm = Slurm.write(tmp_path / "bin")
    alone = {"SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1"}
    for name, value in slurm.variables(job="9001", **alone).items():
        monkeypatch.setenv(name, value)

    more = {"saving": {"every_n_train_steps": 5}}
    with pytest.raises(Interrupted, match="143"), exit_on_signals():
        fit(tmp_path, Line(sends(signal.SIGUSR1, 3)), **more)
    assert slurm.calls == ["show job 9001", "requeue 9001"]
    assert not list(tmp_path.rglob("hpc_ckpt*"))
    assert weights(fit(tmp_path, Line(), tmp_path / LAST, **more)) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_signal_within_a_validation_has_it_run_again_whole(
    tmp_path: Path, accumulate: int
) -> None:
    more = {
        "saving": {"every_n_train_steps": 5}, "val_check_interval": 4, "limit_val_batches": 2,
        "accumulate_grad_batches": accumulate, "max_steps": 12 // accumulate,
    }  # fmt: skip
    expected = fit(tmp_path / "whole", Line(), **more)
    cut = Line(sends(signal.SIGTERM, -3))
    with pytest.raises(Interrupted), exit_on_signals():
        fit(tmp_path, cut, **more)
    assert (len(cut.seen), cut.validated) == (8, [7, 8, 7])
    found = fit(tmp_path, Line(), tmp_path / LAST, **more)
    assert (len(found.seen), found.validated) == (4, [7, 8, 7, 8])
    assert weights(found) == weights(expected)


def test_a_run_that_keeps_no_last_state_begins_again(tmp_path: Path) -> None:
    """The state of some stages, such as scores that are collected, is in no checkpoint."""
    with pytest.raises(Interrupted, match="143"), exit_on_signals():
        fit(tmp_path, Line(sends(signal.SIGTERM, 3)), saving={"save_last": False})
    assert not list(tmp_path.rglob("last.ckpt"))


def test_an_error_behind_a_signal_is_that_of_the_signal(
    tmp_path: Path, undisturbed: list[float]
) -> None:
    """A job's scheduler tells all processes: reading workers end, which is an error in a fit."""

    def do(now: int) -> None:
        if now == 6:
            os.kill(os.getpid(), signal.SIGTERM)
            raise RuntimeError("DataLoader worker is killed by signal: Terminated")

    more = {"saving": {"every_n_train_steps": 5}}
    with pytest.raises(Interrupted, match="143"), exit_on_signals():
        fit(tmp_path, Line(do), **more)
    found = fit(tmp_path, Line(), tmp_path / LAST, **more)
    assert len(found.seen) == 8, "the step that broke off comes again whole"
    assert weights(found) == undisturbed


@final
class Cleaned(Callback):
    """Notes that a run ends in order."""

    def __init__(self) -> None:
        self.cleaned = False

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.cleaned = True


@pytest.mark.parametrize("function", ["validate", "test", "predict"])
def test_a_signal_ends_everything_else_at_once(tmp_path: Path, function: str) -> None:
    module, cleaned = Line(), Cleaned()

    def step(batch: Any, batch_idx: int) -> Any:
        module.seen.append(batch)
        if batch == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            module.seen.append(99)
        return torch.zeros(1)

    module.validation_step = module.test_step = module.predict_step = step  # type: ignore
    trainer = trainer_of(tmp_path, limit_val_batches=None, callbacks=[cleaned, Interruption()])
    loaders = {name: lambda rank, world: Items([1, 2, 3]) for name in ("val", "test", "predict")}
    with pytest.raises(Interrupted) as interrupted, exit_on_signals():
        getattr(trainer, function)(module, datamodule=Stub(**loaders))
    assert interrupted.value.code == 143
    assert module.seen == [1, 2]
    assert cleaned.cleaned
