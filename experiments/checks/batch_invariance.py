"""Measures the difference of two embeddings of the same data, and changes of rankings by it.

Shapes: Q queries, N candidates, D embedding, k places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from mmemb.retrieval.ranking import search

GAP = 1e-5
"""Scores that are further apart must not change places: above the noise of fp32 sums."""

_PLACES = 11


@final
@dataclass(frozen=True, slots=True)
class Change:
    """Difference from the first embedding.

    Attributes:
        largest: change of a number of a vector.
        flips: neighbours among the first 11 that changed places although further apart than `GAP`.
        near_flips: the same of those that are nearer.
        pairs: of neighbours that were looked at.
    """

    largest: float
    flips: int
    near_flips: int
    pairs: int

    def __add__(self, other: Change) -> Change:
        return Change(
            max(self.largest, other.largest),
            self.flips + other.flips,
            self.near_flips + other.near_flips,
            self.pairs + other.pairs,
        )


def change_between(
    first: tuple[Tensor, Tensor],
    second: tuple[Tensor, Tensor],
    lists: Sequence[Sequence[int]] | None = None,
) -> Change:
    """Compares two embeddings of the same queries (Q, D) and candidates (N, D).

    Args:
        first: queries and candidates.
        second: the same in the same order, embedded otherwise.
        lists: rows of each query's own candidates; None = all.

    Raises:
        ValueError: the two are not about the same rows.
    """
    shapes = [[tuple(x.shape) for x in pair] for pair in (first, second)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{shapes[0]} against {shapes[1]}: expected the same queries and names.")

    largest = max(float((a - b).abs().max()) for a, b in zip(first, second, strict=True))

    # Neighbours in the first ranking: for no change of order it is enough that none of them
    # swap.
    row_Qk = search(*first, _PLACES, local_QC=lists)[1]
    score_Qk, other_Qk = (_scores(query, candidate, row_Qk) for query, candidate in (first, second))

    # Rows of -1 fill lists that are shorter than the number of places.
    valid_Qk = (row_Qk[:, 1:] >= 0) & (row_Qk[:, :-1] >= 0)
    gap_Qk, after_Qk = -score_Qk.diff(dim=1), -other_Qk.diff(dim=1)
    flipped_Qk = (after_Qk < 0) & valid_Qk

    # A change among near scores is noise of fp32 sums, one among others is not.
    far_Qk = gap_Qk > GAP
    return Change(
        largest,
        int((flipped_Qk & far_Qk).sum()),
        int((flipped_Qk & ~far_Qk & (gap_Qk > 0)).sum()),
        int(valid_Qk.sum()),
    )


def _scores(query_QD: Tensor, candidate_ND: Tensor, row_Qk: Tensor) -> Tensor:
    # In float64, so that the scores themselves add no noise.
    picked_QkD = candidate_ND.double()[row_Qk.clamp(min=0)]
    return torch.einsum("qd,qkd->qk", query_QD.double(), picked_QkD)
