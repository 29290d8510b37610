"""A loss as a sum and a count, and the one place that divides them over all ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from mmemb.distributed import rank_and_world, sum_over_ranks


@final
@dataclass(frozen=True, slots=True)
class LossTerm:
    """A loss as the sum over this rank's rows and their number, so that ranks may be uneven."""

    sum: Tensor
    count: Tensor


def combine(term: LossTerm, world: int | None = None) -> Tensor:
    """Returns the scalar to call backward on: `world * local_sum / global_count`.

    DDP averages gradients over ranks, so this is the mean over all valid rows of all ranks
    (docs/method.md section 6). It stays joined to the graph, and is 0, when no rank has a valid
    row. Runs on every rank.
    """
    world = rank_and_world()[1] if world is None else world
    return world * term.sum / sum_over_ranks(term.count).clamp(min=1)
