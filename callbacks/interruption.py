"""Interruption: ends a run on a signal, and keeps every checkpoint at a whole step."""

import os
import signal
from typing import Any, final

from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.trainer.states import TrainerFn
from torch.optim import Optimizer
from typing_extensions import override

from callbacks.fit_end import accumulates, save_last, unfinished_fit
from mmemb.storage.requeue import requeue
from mmemb.storage.signals import Interrupted, end, handle_signals


@final
class Interruption(Callback):
    """Ends a run on SIGTERM, SIGUSR1 or SIGINT with status 143, 143 or 130; give it as the last
    callback.

    A `fit` ends behind the step that is running (on one process also within a validation), and one
    that keeps its last state (`ModelCheckpoint(save_last=True)`) saves it first; its SLURM job is
    requeued. Everything else ends at once: what it has written is whole.

    Whenever a checkpoint is saved, it is of a whole step. It lacks the gradients that micro-batches
    have summed so far (`accumulate_grad_batches`), so in its loop state these batches are still to
    come; in one saved within a validation, this validation is.
    """

    def __init__(self) -> None:
        self._signum: int | None = None
        self._loop_state: dict[str, Any] | None = None  # at the last whole step
        self._stepping = self._validating = False

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Lightning's own handler would save a file of its own and requeue the job before ours has.
        environment = trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment):
            environment.auto_requeue = False

    # where training stands

    @override
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._loop_state = checkpoint["loops"]["fit_loop"]

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        inside = _in_batch(trainer) or self._validating or accumulates(trainer)
        if inside:
            if self._loop_state is not None:
                checkpoint["loops"]["fit_loop"] = self._loop_state

        # Lightning would take a validation that is due after this step for done.
        elif _ends_batch(trainer) and _validates_next(trainer):
            checkpoint["loops"]["fit_loop"] = _before_validation(trainer, batch_is_over=False)

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        # From here to the batch's end the weights may be changed in part, so they are not saved.
        self._stepping = True

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._stepping = False

        # Only a whole step is a place to go on from.
        if not accumulates(trainer):
            self._loop_state = trainer.fit_loop.state_dict()
            self._stop_on_signal(trainer)

    @override
    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *_: Any
    ) -> None:
        # Several ranks may have unequally many batches here: they agree after the next step.
        if trainer.state.fn == TrainerFn.FITTING and trainer.world_size == 1:
            self._stop_on_signal(trainer)

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validating = False

    # signals

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        handle_signals(lambda signum: self._note(trainer, signum))

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Before the first step there is nothing to save. Lightning's own handler would broadcast
        # between the ranks, whatever they are doing.
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            handle_signals(lambda signum: _end(trainer, signum))
        elif not accumulates(trainer):
            self._loop_state, self._validating = _before_validation(trainer), True

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        handle_signals(lambda signum: _end(trainer, signum))

    on_predict_start = on_test_start

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Saves the last step: a signal to all processes of a job ends its reading workers, too,
        which is an error here."""
        if self._signum is None or isinstance(exception, Interrupted):
            return
        if trainer.world_size == 1 and not self._stepping:
            save_last(trainer)

    def _note(self, trainer: Trainer, signum: int) -> None:
        if self._signum == signal.SIGINT == signum:  # Ctrl-C twice: without waiting for the step
            _end(trainer, signum)
        if self._signum is None:
            self._signum = signum
            _pass_on(trainer, signum)

    def _stop_on_signal(self, trainer: Trainer) -> None:
        """Ends the fit on all ranks if any of them has received a signal."""
        if trainer.strategy.reduce_boolean_decision(self._signum is not None, all=False):
            save_last(trainer)

            # Before any rank ends: SLURM may kill the others when the first one has failed.
            signum = self._signum or signal.SIGTERM
            requeue(signum, os.environ)
            trainer.strategy.barrier()

            _end(trainer, signum, str(unfinished_fit(trainer)))


def _in_batch(trainer: Trainer) -> bool:
    """True while a batch is being trained on."""
    counts = trainer.fit_loop.epoch_loop.batch_progress.current
    return counts.ready != counts.processed


def _ends_batch(trainer: Trainer) -> bool:
    """True in the hooks at the end of a training batch, before it counts as completed."""
    counts = trainer.fit_loop.epoch_loop.batch_progress.current
    return counts.ready == counts.processed == counts.completed + 1


def _validates_next(trainer: Trainer) -> bool:
    """True if a validation follows the batch that ends here, in a fit that nothing stops."""
    stops, trainer.should_stop = trainer.should_stop, False
    try:
        return trainer.fit_loop.epoch_loop._should_check_val_fx(trainer.fit_loop._data_fetcher)
    finally:
        trainer.should_stop = stops


def _before_validation(trainer: Trainer, batch_is_over: bool = True) -> dict[str, Any]:
    """The loop state as Lightning has it in the first batch of a validation: a fit that goes on
    from it runs this validation, from its start."""
    state = trainer.fit_loop.state_dict()
    if not batch_is_over:
        batches = state["epoch_loop.batch_progress"]
        for counts in (batches["total"], batches["current"]):
            counts["completed"] = counts["processed"]

    progress = state["epoch_loop.val_loop.batch_progress"]
    for counts in (progress["total"], progress["current"]):
        counts["ready"] = counts["started"] = counts["completed"] + 1
        counts["processed"] = counts["completed"]
    return state


def _end(trainer: Trainer, signum: int, advice: str = "") -> None:
    _pass_on(trainer, signum)
    # The first process reports for those that it has launched, and takes 143 there for a crash.
    end(Interrupted(signum, advice, status=None if trainer.local_rank == 0 else 0))


def _pass_on(trainer: Trainer, signum: int) -> None:
    """Sends the signal to the processes that this one has launched."""
    if isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher):
        trainer.strategy.launcher.kill(signum)
