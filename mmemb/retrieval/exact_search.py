"""Exact nearest candidates: the plain definition in fp64, and beside it the speed of fp32 products.

Shapes: Q queries, N candidates, D embedding, n candidates of a block, s spans of a block, w
candidates that are kept of a query, C columns of scores.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from mmemb.records.precision import to_float64_device

MARGIN = 1e-5
"""For unit vectors: far above the error of an fp32 product (about 1e-6 at D = 4,096)."""

_BLOCK_NUMBERS = 2**23
"""Scores held at once (32 MB in fp32)."""

_SPAN = 64
"""Neighbours whose highest score is looked at first: few spans hold a candidate that is kept."""

_SPARE = 8
"""Candidates that are kept of a query beside the k best: so many may be as near as the k-th."""


def plain_top(
    query_QD: Tensor,
    candidate_ND: Tensor,
    k: int,
    tolerance: float,
    block_numbers: int = _BLOCK_NUMBERS,
) -> tuple[Tensor, Tensor]:
    """The k best candidates of each query, best first; of equals the one listed first.

    Args:
        query_QD: finite vectors.
        candidate_ND: the same.
        k: from 1 to N.
        tolerance: fp64 scores are rounded to multiples of it before they are compared.
        block_numbers: changes memory, never the result.

    Returns:
        fp64 scores (Q, k) and candidate rows (Q, k).
    """
    query_QD, candidate_ND = to_float64_device(query_QD), to_float64_device(candidate_ND)
    blocks = []
    for query_qD in query_QD.double().split(max(1, block_numbers // len(candidate_ND))):
        # A part at a time: all candidates in fp64 would take twice their memory once more.
        parts = [query_qD @ part_nD.double().T for part_nD in candidate_ND.split(2**14)]
        blocks.append(best_first(torch.cat(parts, dim=1), k, tolerance))

    scores, rows = zip(*blocks, strict=True)
    return torch.cat(scores), torch.cat(rows)


@torch.no_grad()
def exact_top(
    query_QD: Tensor,
    candidate_ND: Tensor,
    k: int,
    tolerance: float,
    block_numbers: int = _BLOCK_NUMBERS,
) -> tuple[Tensor, Tensor]:
    """The same as `plain_top` of fp32 vectors: a pass in fp32 leaves few candidates to score again.

    A query whose last candidate kept is within a margin of the k-th, such as one with many equal
    candidates, is searched by `plain_top`.
    """
    query_QD, candidate_ND = to_float64_device(query_QD), to_float64_device(candidate_ND)
    best_Qw, row_Qw = _nearest(query_QD, candidate_ND, k + _SPARE, block_numbers)

    # In the order of the table, so that of equals the one listed first comes first.
    row_Qw = row_Qw.sort(dim=1).values
    step = max(1, block_numbers // (row_Qw.shape[1] * query_QD.shape[1]))
    chunks = zip(query_QD.split(step), row_Qw.split(step), strict=True)
    parts = [
        torch.einsum("qd,qwd->qw", query_qD.double(), candidate_ND[row_qw].double())
        for query_qD, row_qw in chunks
    ]
    score_Qk, column_Qk = best_first(torch.cat(parts), k, tolerance)
    row_Qk = row_Qw.gather(1, column_Qk)

    # The rounding error of a product grows with the lengths of its two vectors.
    longest = query_QD.norm(dim=1).amax() * candidate_ND.norm(dim=1).amax()
    is_lost_Q = best_Qw[:, -1] >= best_Qw[:, k - 1] - MARGIN * longest.clamp(min=1)
    if best_Qw.shape[1] < len(candidate_ND) and is_lost_Q.any():
        again = plain_top(query_QD[is_lost_Q], candidate_ND, k, tolerance, block_numbers)
        score_Qk[is_lost_Q], row_Qk[is_lost_Q] = again
    return score_Qk, row_Qk


def best_first(score_QC: Tensor, k: int, tolerance: float) -> tuple[Tensor, Tensor]:
    """The k best scores and their columns, best first; of equals the first column."""
    # Whole multiples of the tolerance: scores of equal vectors differ in the last bits.
    steps_QC = (score_QC / tolerance).round()
    column_Qk = steps_QC.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return score_QC.gather(1, column_Qk), column_Qk


def _nearest(
    query_QD: Tensor, candidate_ND: Tensor, num: int, block_numbers: int
) -> tuple[Tensor, Tensor]:
    """fp32 scores (Q, w), best first, and rows (Q, w) of the `num` nearest candidates, or all."""
    Q, N = len(query_QD), len(candidate_ND)
    step = _SPAN * max(1, block_numbers // (_SPAN * max(1, Q)))
    out_Qn = query_QD.new_empty(Q, min(step, N))
    place_S = torch.arange(_SPAN, device=query_QD.device)
    best_Qw = query_QD.new_zeros(Q, 0)
    row_Qw = torch.zeros(Q, 0, dtype=torch.long, device=query_QD.device)

    for start in range(0, N, step):
        score_Qn = _product(query_QD, candidate_ND[start : start + step], out_Qn)
        score_Qn = pad(score_Qn, (0, -score_Qn.shape[1] % _SPAN), value=-torch.inf)

        # The `num` best stand in no more than `num` spans, those with the highest maxima.
        maxima_Qs = score_Qn.unflatten(1, (-1, _SPAN)).amax(2)
        span_Qs = maxima_Qs.topk(min(num, maxima_Qs.shape[1]), sorted=False).indices
        column_Qn = (_SPAN * span_Qs[..., None] + place_S).flatten(1)

        best_Qw = torch.cat([best_Qw, score_Qn.gather(1, column_Qn)], dim=1)
        row_Qw = torch.cat([row_Qw, column_Qn + start], dim=1)
        best_Qw, order_Qw = best_Qw.topk(min(num, N, best_Qw.shape[1]), dim=1)
        row_Qw = row_Qw.gather(1, order_Qw)
    return best_Qw, row_Qw


def _product(query_QD: Tensor, block_nD: Tensor, out_Qn: Tensor) -> Tensor:
    """fp32 scores (Q, n), into `out_Qn` if they fill it. On processors by NumPy: its OpenBLAS is as
    fast as torch's MKL on some and twice as fast on others (AMD)."""
    if len(block_nD) < out_Qn.shape[1]:
        out_Qn = query_QD.new_empty(len(query_QD), len(block_nD))

    if query_QD.device.type != "cpu":
        return torch.mm(query_QD, block_nD.T, out=out_Qn)
    np.matmul(query_QD.detach().numpy(), block_nD.detach().numpy().T, out=out_Qn.numpy())
    return out_Qn
