"""Mean losses: the one place that divides a sum by a count over all ranks."""

from __future__ import annotations

from torch import Tensor

from mmemb.distributed import rank_and_world, sum_over_ranks
from mmemb.records.loss_term import LossTerm


def combine(term: LossTerm, world: int | None = None) -> Tensor:
    """Returns the scalar to call backward on: `world * local_sum / global_count`.

    DDP averages gradients over ranks, so this is the mean over all valid rows of all ranks
    (docs/method.md section 6). It stays joined to the graph, and is 0, when no rank has a valid
    row. Runs on every rank.
    """
    world = rank_and_world()[1] if world is None else world
    return world * term.sum / sum_over_ranks(term.count).clamp(min=1)
