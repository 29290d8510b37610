"""The learning-rate schedule of every fit: linear warm-up, then a cosine down to a floor."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_cosine(step: int, num_steps: int, num_warmup: int, floor: float = 0.05) -> float:
    """The factor on the learning rate at `step`.

    >>> warmup_cosine(0, 100, 10), warmup_cosine(9, 100, 10), warmup_cosine(100, 100, 10)
    (0.1, 1.0, 0.05)
    """
    if step < num_warmup:
        return (step + 1) / num_warmup
    done = min((step - num_warmup) / max(num_steps - num_warmup, 1), 1.0)
    return floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2


def schedule(optimizer: Optimizer, num_steps: int, num_warmup: int) -> LambdaLR:
    """`warmup_cosine` as a scheduler. `num_steps` comes from `trainer.max_steps`: asking Lightning
    for its estimate would drop a restored loader state."""
    return LambdaLR(optimizer, lambda step: warmup_cosine(step, num_steps, num_warmup))
