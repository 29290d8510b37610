"""The end of a fit: reached, or only interrupted. StopAtStep ends an interrupted one at a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from typing_extensions import override

from mmemb.storage.run_folder import RunFolder
from mmemb.storage.unfinished import Unfinished

DIVERGED = (EarlyStoppingReason.NON_FINITE_METRIC, EarlyStoppingReason.DIVERGENCE_THRESHOLD)
"""Reasons of EarlyStopping by which a training has failed instead of converged."""

LAST = RunFolder(Path()).last_checkpoint
"""The checkpoint in a run's folder from which the same command goes on."""


def has_ended(trainer: Trainer) -> bool:
    """True if `max_steps` or `max_epochs` was reached, or an EarlyStopping has stopped the fit.

    Everything else that stops a fit (`max_time`, a signal, another callback) interrupts it. Valid
    from the end of a training batch on.
    """
    loop = trainer.fit_loop
    # Lightning writes "no bound" as -1.
    if 0 <= trainer.max_steps <= trainer.global_step:
        return True

    # A stop in the middle of an epoch counts the epoch as processed, so its batches are counted.
    batches, epochs = loop.epoch_loop.batch_progress, loop.epoch_progress.current
    whole = batches.is_last_batch or batches.current.ready >= loop.max_batches
    whole = whole or (epochs.processed >= epochs.ready and not trainer.should_stop)
    if whole and trainer.max_epochs is not None and 0 <= trainer.max_epochs <= epochs.ready:
        return True

    return trainer.should_stop and stopped_early(trainer)


def stopped_early(trainer: Trainer) -> bool:
    """True if an EarlyStopping has stopped the fit.

    Raises:
        ValueError: it did so because the monitored metric diverged.
    """
    stopped = [
        callback
        for callback in trainer.early_stopping_callbacks
        if isinstance(callback, EarlyStopping)
        and callback.stopping_reason is not EarlyStoppingReason.NOT_STOPPED
    ]

    for callback in stopped:
        if callback.stopping_reason in DIVERGED:
            raise ValueError(
                f"The training diverged at step {trainer.global_step}: "
                f"{callback.stopping_reason_message} It is not recorded as finished. Start it with "
                "other settings, such as a lower learning rate."
            )
    return bool(stopped)


def unfinished_fit(trainer: Trainer) -> Unfinished:
    """The exception that ends an interrupted fit; its message names the step and how to go on."""
    run = Path(trainer.default_root_dir)
    steps = f" of {trainer.max_steps}" if trainer.max_steps > 0 else ""
    again = f"goes on from {LAST}" if (run / LAST).is_file() else "starts again from the first step"
    return Unfinished(
        f"{run}: interrupted at step {trainer.global_step}{steps}, not finished. The same command "
        f"{again}."
    )


def save_last(trainer: Trainer) -> None:
    """Saves the state of an interrupted fit, if its run keeps the last one (`save_last`).

    Without `save_last` the fit starts again: what some stages collect, such as scores, is in no
    checkpoint.
    """
    # Before the first step there is nothing to go on from.
    keeps = any(getattr(callback, "save_last", None) for callback in trainer.checkpoint_callbacks)
    if keeps and trainer.global_step > 0:
        trainer.save_checkpoint(Path(trainer.default_root_dir) / LAST)


def accumulates(trainer: Trainer) -> bool:
    """True if micro-batches of the running step are still to come."""
    if trainer.accumulate_grad_batches == 1:
        return False

    # Lightning's own rule, which also ends a window at the last batch of an epoch.
    return trainer.fit_loop.epoch_loop._should_accumulate()


@final
class StopAtStep(Callback):
    """Ends a fit that something other than its own limits stops, after a whole step is saved.

    Must be the last of the callbacks: those before it decide about the stop.
    """

    def __init__(self) -> None:
        self._due = False

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._due = self._due or (trainer.should_stop and trainer.fit_loop._can_stop_early)
        if not self._due or has_ended(trainer):
            return

        # In the middle of an accumulation window the gradients so far would be lost.
        if accumulates(trainer):
            trainer.should_stop = False
            return

        save_last(trainer)
        raise unfinished_fit(trainer)
