"""BatchLimits: the trainer's `limit_*_batches`, applied by a data module instead of by Lightning.

Lightning cuts every loader of a stage at the same number of batches. Of candidates and queries it
would cut both, and a query would be ranked in a part of its gallery.
"""

from __future__ import annotations

from typing import Literal, final

from lightning.pytorch import Trainer

LimitedStage = Literal["train", "val", "test", "predict"]
Limit = int | float


@final
class BatchLimits:
    """Limits that a data module has taken over from its trainer.

    A trainer whose limit was taken has the new one until `give_back`, so that Lightning cuts
    nothing a second time.
    """

    def __init__(self) -> None:
        self._taken: dict[str, tuple[Trainer, Limit]] = {}

    def take(self, trainer: Trainer | None, stage: LimitedStage, left: Limit = 1.0) -> Limit:
        """Returns the trainer's limit and leaves `left` in its place; equal at every call."""
        if trainer is None:
            return 1.0

        name = f"limit_{stage}_batches"
        # At a second call the trainer holds the replacement already.
        if name not in self._taken:
            self._taken[name] = (trainer, getattr(trainer, name))
            setattr(trainer, name, left)
        return self._taken[name][1]

    def give_back(self) -> None:
        """Restores the limits of the trainers."""
        for name, (trainer, limit) in self._taken.items():
            setattr(trainer, name, limit)
        self._taken = {}


def num_batches(total: int, limit: Limit, name: str) -> int:
    """Number of batches that a limit leaves: a whole number counts them, a fraction is a share.

    Raises:
        ValueError: the share is less than one batch.

    >>> num_batches(10, 3, "limit_val_batches"), num_batches(10, 0.25, "limit_val_batches")
    (3, 2)
    """
    if isinstance(limit, int):
        return min(total, limit)

    count = int(total * limit)
    if total and limit and not count:
        raise ValueError(
            f"trainer.{name} is {limit}, which is less than one of {total} batches: set it to at "
            f"least {1 / total:.3g}, or to a whole number of batches."
        )
    return count
