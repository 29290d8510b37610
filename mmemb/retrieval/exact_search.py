"""Exact nearest candidates in bounded memory, at the speed of fp32 products.

A pass in fp32 drops what is certainly behind; what comes within a margin of the k-th is scored
again in fp64 and sorted stably, so the result is that of fp64 throughout.
Shapes: Q queries, N candidates, D embedding, n candidates of a block, S survivors.
"""

from __future__ import annotations

from typing import final

import numpy as np
import torch
from torch import Tensor

MARGIN = 1e-5
"""For unit vectors: far above the error of an fp32 product (about 1e-6 at D = 4,096)."""

_BLOCK_NUMBERS = 2**23
"""Scores held at once (32 MB in fp32)."""

_SPAN = 64
"""Neighbours whose highest score is looked at first: few spans hold a survivor."""

_MOST_SURVIVORS = 4096
"""Limit of one query; with more (equal vectors) it is searched in fp64 from the start."""


@torch.no_grad()
def exact_top(
    query_QD: Tensor,
    candidate_ND: Tensor,
    k: int,
    tolerance: float,
    block_numbers: int = _BLOCK_NUMBERS,
) -> tuple[Tensor, Tensor]:
    """The k best candidates of each query, best first; of equals the one listed first.

    Args:
        query_QD: finite fp32 vectors.
        candidate_ND: the same.
        k: from 1 to N.
        tolerance: fp64 scores are rounded to multiples of it before they are compared.
        block_numbers: changes memory, never the result.

    Returns:
        fp64 scores (Q, k) and candidate rows (Q, k).
    """
    # The rounding error of a product grows with the lengths of its two vectors.
    longest = query_QD.norm(dim=1).amax() * candidate_ND.norm(dim=1).amax()
    pool = _Survivors(len(query_QD), k, MARGIN * float(longest.clamp(min=1)), query_QD.device)

    # A multiple of the span, so that all blocks but the last one are cut into whole spans.
    step = _SPAN * max(1, block_numbers // (_SPAN * max(1, len(query_QD))))
    out_Qn = query_QD.new_empty(len(query_QD), min(step, len(candidate_ND)))

    for start in range(0, len(candidate_ND), step):
        pool.add(_product(query_QD, candidate_ND[start : start + step], out_Qn), start)

    score_Qk, row_Qk = pool.ranked(query_QD, candidate_ND, tolerance)

    # The pool gave up on these queries; they cost fp64 over all candidates.
    if len(lost := pool.overflown.nonzero()[:, 0]):
        blocks = max(1, block_numbers // len(lost))
        score_Qk[lost], row_Qk[lost] = folded_top(
            query_QD[lost], candidate_ND, k, tolerance, blocks
        )
    return score_Qk, row_Qk


def folded_top(
    query_QD: Tensor, candidate_ND: Tensor, k: int, tolerance: float, step: int
) -> tuple[Tensor, Tensor]:
    """The same as `exact_top`, in fp64 from the start: slower, whatever the scores are.

    Args:
        query_QD: as there.
        candidate_ND: as there.
        k: as there.
        tolerance: as there.
        step: candidates of a block.
    """
    query_QD = query_QD.double()

    best_Qk, row_Qk = (
        query_QD.new_zeros(len(query_QD), 0),
        torch.zeros(len(query_QD), 0, dtype=torch.long, device=query_QD.device),
    )

    for start in range(0, len(candidate_ND), step):
        score_Qn = query_QD @ candidate_ND[start : start + step].double().T
        rows_n = torch.arange(start, start + score_Qn.shape[1], device=query_QD.device)

        best_Qk = torch.cat([best_Qk, score_Qn], dim=1)  # earlier rows first: the sort is stable
        row_Qk = torch.cat([row_Qk, rows_n.expand(len(query_QD), -1)], dim=1)

        order_Qk = steps(best_Qk, tolerance).sort(dim=1, descending=True, stable=True).indices
        order_Qk = order_Qk[:, :k]
        best_Qk, row_Qk = best_Qk.gather(1, order_Qk), row_Qk.gather(1, order_Qk)
    return best_Qk, row_Qk


def steps(score: Tensor, tolerance: float) -> Tensor:
    """Scores as whole multiples of a tolerance: equal vectors differ in the last bits."""
    return (score / tolerance).round()


@final
class _Survivors:
    """Candidates that may be among the k best of their query, by the fp32 scores so far."""

    def __init__(self, Q: int, k: int, margin: float, device: torch.device) -> None:
        self._k, self._margin = k, margin
        self._query_S = torch.zeros(0, dtype=torch.long, device=device)
        self._row_S = self._query_S.clone()
        self._score_S = torch.zeros(0, device=device)
        self._limit_Q = torch.full((Q,), -torch.inf, device=device)
        self._num_pruned = 0
        self.overflown = torch.zeros(Q, dtype=torch.bool, device=device)

    def add(self, score_Qn: Tensor, start: int) -> None:
        """Takes the scores of the next block of candidates."""
        # The first block alone sets a first limit, which drops most of what follows.
        if start == 0:
            first_Qk = score_Qn.topk(min(self._k, score_Qn.shape[1]), dim=1).values
            if first_Qk.shape[1] == self._k:
                self._limit_Q = first_Qk[:, -1] - self._margin

        query_S, column_S = _above(score_Qn, self._limit_Q)
        if not len(query_S):
            return

        self._query_S = torch.cat([self._query_S, query_S])
        self._row_S = torch.cat([self._row_S, column_S + start])
        self._score_S = torch.cat([self._score_S, score_Qn[query_S, column_S]])

        if len(self._score_S) > 1.5 * self._num_pruned:  # sorting costs more than a few too many
            self._prune()

    def _prune(self) -> None:
        """Raises the limits to what is known now, and drops what lies below them."""
        # By query, and by falling score within a query: the second sort is stable.
        order_S = self._score_S.argsort(descending=True)
        order_S = order_S[self._query_S[order_S].argsort(stable=True)]
        self._query_S, self._row_S = self._query_S[order_S], self._row_S[order_S]
        self._score_S = self._score_S[order_S]

        count_Q = torch.bincount(self._query_S, minlength=len(self._limit_Q))
        first_Q = count_Q.cumsum(0) - count_Q

        # A limit exists only behind k candidates, and it never falls.
        full_Q = count_Q >= self._k
        at_Q = (first_Q + self._k - 1).clamp(max=len(self._score_S) - 1)
        kth_Q = self._score_S[at_Q] - self._margin
        self._limit_Q = torch.where(full_Q, torch.maximum(self._limit_Q, kth_Q), self._limit_Q)

        # An infinite limit drops what these queries hold, and takes nothing more.
        self.overflown |= count_Q > max(_MOST_SURVIVORS, 4 * self._k)
        self._limit_Q[self.overflown] = torch.inf

        kept_S = self._score_S >= self._limit_Q[self._query_S]
        self._query_S, self._row_S = self._query_S[kept_S], self._row_S[kept_S]
        self._score_S = self._score_S[kept_S]
        self._num_pruned = len(self._score_S)

    def ranked(
        self, query_QD: Tensor, candidate_ND: Tensor, tolerance: float
    ) -> tuple[Tensor, Tensor]:
        """fp64 scores (Q, k) and rows (Q, k); of overflown queries zeros."""
        exact_S = _dots(query_QD, candidate_ND, self._query_S, self._row_S)

        # The last of the three sorts counts most: query, then score, then row of the table.
        order_S = self._row_S.argsort()
        order_S = order_S[steps(exact_S[order_S], tolerance).argsort(descending=True, stable=True)]
        order_S = order_S[self._query_S[order_S].argsort(stable=True)]

        count_Q = torch.bincount(self._query_S, minlength=len(self._limit_Q))
        first_Q1 = (count_Q.cumsum(0) - count_Q)[:, None]

        place_Qk = first_Q1 + torch.arange(self._k, device=query_QD.device)

        # Overflown queries have no survivors: the clamp keeps their places inside the tensor.
        picked_Qk = order_S[place_Qk.clamp(max=max(len(order_S) - 1, 0))] if len(order_S) else None

        if picked_Qk is None:
            empty = query_QD.new_zeros(len(query_QD), self._k)
            return empty.double(), empty.long()
        return exact_S[picked_Qk], self._row_S[picked_Qk]


def _product(query_QD: Tensor, block_nD: Tensor, out_Qn: Tensor) -> Tensor:
    """fp32 scores (Q, n), into `out_Qn` if they fill it. On processors by NumPy: its OpenBLAS is as
    fast as torch's MKL on some and twice as fast on others (AMD)."""
    if len(block_nD) < out_Qn.shape[1]:
        out_Qn = query_QD.new_empty(len(query_QD), len(block_nD))

    if query_QD.device.type != "cpu":
        return torch.mm(query_QD, block_nD.T, out=out_Qn)
    np.matmul(query_QD.detach().numpy(), block_nD.detach().numpy().T, out=out_Qn.numpy())
    return out_Qn


def _above(score_Qn: Tensor, limit_Q: Tensor) -> tuple[Tensor, Tensor]:
    """Query and column of every score that reaches its query's limit."""
    Q, n = score_Qn.shape
    if n % _SPAN:
        return (score_Qn >= limit_Q[:, None]).nonzero(as_tuple=True)

    # The highest score of a span rules out its other scores with one comparison.
    spans = score_Qn.view(Q, n // _SPAN, _SPAN)
    query_s, span_s = (spans.amax(2) >= limit_Q[:, None]).nonzero(as_tuple=True)
    place_S, column_S = (spans[query_s, span_s] >= limit_Q[query_s, None]).nonzero(as_tuple=True)
    return query_s[place_S], span_s[place_S] * _SPAN + column_S


def _dots(query_QD: Tensor, candidate_ND: Tensor, query_S: Tensor, row_S: Tensor) -> Tensor:
    """fp64 scores of pairs, some thousand at a time."""
    # Each pair copies two vectors: pieces bound the memory.
    parts = [
        (query_QD[q].double() * candidate_ND[c].double()).sum(1)
        for q, c in zip(query_S.split(2**14), row_S.split(2**14), strict=True)
    ]
    return torch.cat(parts) if parts else query_QD.new_zeros(0).double()
