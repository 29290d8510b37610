"""The learning-rate schedule of every fit: linear warm-up, then a cosine down to a floor."""

from __future__ import annotations

import math
import sys
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.utilities import rank_zero_only
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_cosine(step: int, num_steps: int, num_warmup_steps: int, floor: float = 0.05) -> float:
    """The factor on the learning rate at `step`.

    >>> warmup_cosine(0, 100, 10), warmup_cosine(9, 100, 10), warmup_cosine(100, 100, 10)
    (0.1, 1.0, 0.05)
    """
    if step < num_warmup_steps:
        return (step + 1) / num_warmup_steps

    # Bounded, since a fit may go on beyond the planned steps, where a cosine rises again.
    progress = min((step - num_warmup_steps) / max(num_steps - num_warmup_steps, 1), 1.0)
    return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2


def schedule(optimizer: Optimizer, num_steps: int, num_warmup_steps: int) -> LambdaLR:
    """`warmup_cosine` as a scheduler; `num_steps` comes from `schedule_length`."""
    return LambdaLR(optimizer, lambda step: warmup_cosine(step, num_steps, num_warmup_steps))


def with_schedule(optimizer: Optimizer, trainer: Trainer, num_warmup_steps: int) -> dict[str, Any]:
    """Returns an optimizer and its schedule as `configure_optimizers` has them."""
    num_steps = schedule_length(trainer)
    warmup = fitting_warmup(num_warmup_steps, num_steps)
    if warmup != num_warmup_steps and num_steps > 1:
        rank_zero_only(print)(
            f"The warm-up has {warmup} instead of {num_warmup_steps} steps, since the fit has "
            f"{num_steps}: set model.num_warmup_steps below that to choose another.",
            file=sys.stderr,
        )

    scheduler = schedule(optimizer, num_steps, warmup)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def fitting_warmup(num_warmup_steps: int, num_steps: int) -> int:
    """Returns a warm-up that ends within the fit: a tenth of it, if the given one does not.

    >>> fitting_warmup(10, 200), fitting_warmup(100, 50), fitting_warmup(10, 1)
    (10, 5, 1)
    """
    if num_warmup_steps < num_steps:
        return num_warmup_steps
    # A learning rate that only rises, and never comes to its value, trains something else.
    return min(num_warmup_steps, max(num_steps // 10, 1))


def num_training_steps(trainer: Trainer) -> int | None:
    """Number of optimiser steps of a fit: `max_steps`, or what `max_epochs` epochs have, or the
    lesser; None if neither is known.

    Lightning's own estimate is not used, since it drops a restored loader state. So epochs
    count only if `limit_train_batches` is a number, which our data modules make it.
    """
    counts = [trainer.max_steps] if trainer.max_steps >= 0 else []

    batches, epochs = trainer.limit_train_batches, trainer.max_epochs
    if isinstance(batches, int) and epochs is not None and epochs >= 0:
        # Rounded up: the last batches of an epoch make a step, though the window is not full.
        per_epoch = [math.ceil(batches / accumulated(trainer, epoch)) for epoch in range(epochs)]
        counts.append(sum(per_epoch))
    return min(counts, default=None)


def accumulated(trainer: Trainer, epoch: int) -> int:
    """Number of batches of an optimiser step in an epoch."""
    changing = [c for c in trainer.callbacks if isinstance(c, GradientAccumulationScheduler)]
    # Lightning forbids this callback beside a fixed number, so it alone decides.
    if changing:
        return changing[0].get_accumulate_grad_batches(epoch)
    return trainer.accumulate_grad_batches


def schedule_length(trainer: Trainer) -> int:
    """Returns `num_training_steps`, or raises if a schedule cannot have it.

    Raises:
        ValueError: neither steps nor epochs are bounded.
    """
    num_steps = num_training_steps(trainer)
    if num_steps is None:
        raise ValueError(
            "The learning-rate schedule needs the number of training steps, which is not known "
            f"from max_steps {trainer.max_steps}, max_epochs {trainer.max_epochs} and "
            f"limit_train_batches {trainer.limit_train_batches}: set trainer.max_steps."
        )
    return num_steps
