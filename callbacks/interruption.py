"""Interruption: what a signal does to a run, and what a checkpoint says about where it stands."""

from __future__ import annotations

import signal
from typing import Any, final

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.trainer.states import TrainerFn
from torch.optim import Optimizer
from typing_extensions import override

from callbacks.fit_end import interrupted, save_last
from mmemb.signals import Interrupted, end, handle_signals


@final
class Interruption(Callback):
    """Ends a run on SIGTERM or SIGINT with status 143 or 130; give it as the last callback.

    A `fit` ends behind the step that is running (on one process also within a validation), and one
    that keeps its last state (`ModelCheckpoint(save_last=True)`) saves it first. Everything else
    ends at once: what it has written is whole.

    Whenever a checkpoint is saved, it is of a whole step. It lacks the gradients that micro-batches
    have summed so far (`accumulate_grad_batches`), so it says that these batches are still to come;
    within a validation it says that this validation is.
    """

    def __init__(self) -> None:
        self._signum: int | None = None
        self._border: dict[str, Any] | None = None
        self._stepping = self._validating = False

    # where training stands

    @override
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._border = checkpoint["loops"]["fit_loop"]

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        inside = _in_batch(trainer) or self._validating or _accumulates(trainer)
        if inside and self._border is not None:
            checkpoint["loops"]["fit_loop"] = self._border

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        self._stepping = True

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._stepping = False
        if not _accumulates(trainer):
            self._border = trainer.fit_loop.state_dict()
            self._stop_if_asked(trainer)

    @override
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        # Several ranks may have unequally many batches here: they agree after the next step.
        if trainer.state.fn == TrainerFn.FITTING and trainer.world_size == 1:
            self._stop_if_asked(trainer)

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validating = False

    # signals

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        handle_signals(lambda signum: self._note(trainer, signum))

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            handle_signals(lambda signum: _end(trainer, signum))
        elif not trainer.sanity_checking and not _accumulates(trainer):
            self._border, self._validating = _before_validation(trainer), True

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        handle_signals(lambda signum: _end(trainer, signum))

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        handle_signals(lambda signum: _end(trainer, signum))

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """A signal to all processes of a job ends reading workers, too, which is an error here."""
        if self._signum is None or isinstance(exception, Interrupted):
            return
        if trainer.world_size == 1 and not self._stepping:
            save_last(trainer)

    def _note(self, trainer: Trainer, signum: int) -> None:
        if self._signum == signal.SIGINT == signum:  # asked twice by hand
            _end(trainer, signum)
        if self._signum is None:
            self._signum = signum
            _pass_on(trainer, signum)

    def _stop_if_asked(self, trainer: Trainer) -> None:
        asked = trainer.strategy.reduce_boolean_decision(self._signum is not None, all=False)
        if asked:
            save_last(trainer)
            _end(trainer, self._signum or signal.SIGTERM, str(interrupted(trainer)))


def _in_batch(trainer: Trainer) -> bool:
    """Says whether a batch is being trained on."""
    counts = trainer.fit_loop.epoch_loop.batch_progress.current
    return counts.ready != counts.processed


def _accumulates(trainer: Trainer) -> bool:
    """Says whether micro-batches of the running step are still to come."""
    if trainer.accumulate_grad_batches == 1:
        return False
    return trainer.fit_loop.epoch_loop._should_accumulate()


def _before_validation(trainer: Trainer) -> dict[str, Any]:
    """The state of training as Lightning has it in the first batch of a validation: one that is
    loaded so runs this validation, from its start."""
    state = trainer.fit_loop.state_dict()
    progress = state["epoch_loop.val_loop.batch_progress"]
    for counts in (progress["total"], progress["current"]):
        counts["ready"] = counts["started"] = counts["completed"] + 1
        counts["processed"] = counts["completed"]
    return state


def _end(trainer: Trainer, signum: int, said: str = "") -> None:
    _pass_on(trainer, signum)
    # The first process reports for those that it has launched, and takes 143 there for a crash.
    end(Interrupted(signum, said, status=None if trainer.local_rank == 0 else 0))


def _pass_on(trainer: Trainer, signum: int) -> None:
    """Tells the processes that this one has launched."""
    if isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher):
        trainer.strategy.launcher.kill(signum)
