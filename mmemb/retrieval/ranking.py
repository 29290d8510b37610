"""Exact search in bounded memory, and tie-aware ranks of the right candidates.

Scores are fp64 dot products of the stored vectors, so that equal vectors tie whatever order a
kernel adds in. Shapes: Q queries, N candidates, C columns (of N, or of a local list), P right
candidates of a query, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from mmemb.records.padding import PADDING
from mmemb.records.precision import float64_device, to_float64_device
from mmemb.retrieval.exact_search import best_first, exact_top

ABSENT = -2
"""Marks a right candidate that is no candidate (a miss); `PADDING` fills up a row of them."""

MISS = 2**40
"""Place of a right candidate that is no candidate: behind every cutoff, however short the list."""

TOLERANCE = 1e-9
"""Scores this close tie: far above the noise of fp64 sums, far below a step of fp32."""

LENGTH_TOLERANCE = 2**-7
"""Largest distance of a length from 1: models that normalise in bfloat16 are off by up to 2**-8."""

_CHUNK_NUMBERS = 2**23


@final
@dataclass(frozen=True, slots=True)
class TiedRanks:
    """Places of the right candidates of each query; iterates over queries.

    Attributes:
        greater_QP: candidates with a higher score; `MISS` for a right one that is no candidate.
        equal_QP: candidates with the same score, itself included: in random order among equals
            its rank is uniform on `greater + 1 ... greater + equal`.
        valid_QP: False where a row is padded.
    """

    greater_QP: Tensor
    equal_QP: Tensor
    valid_QP: Tensor

    @classmethod
    def join(cls, parts: Iterable[TiedRanks]) -> TiedRanks:
        """Ranks of the queries of all parts, in order; at least one part."""
        columns = zip(*((p.greater_QP, p.equal_QP, p.valid_QP) for p in parts), strict=True)
        return cls(*map(torch.cat, columns))

    def best_group(self) -> tuple[Tensor, Tensor, Tensor]:
        """Numbers (Q,) about the best right one: candidates before it, its equals, right equals."""
        far = torch.iinfo(self.greater_QP.dtype).max
        before_Q, best_Q = self.greater_QP.masked_fill(~self.valid_QP, far).min(1)

        equal_Q = self.equal_QP.gather(1, best_Q[:, None])[:, 0]
        right_Q = ((self.greater_QP == before_Q[:, None]) & self.valid_QP).sum(1)
        return before_Q, equal_Q, right_Q

    def __len__(self) -> int:
        return len(self.greater_QP)

    def __iter__(self) -> Iterator[TiedRanks]:
        for row in range(len(self)):
            part = slice(row, row + 1)
            yield TiedRanks(self.greater_QP[part], self.equal_QP[part], self.valid_QP[part])


def pad_rows(rows: Sequence[Sequence[int]], fill: int = PADDING) -> Tensor:
    """Lists of row numbers as one padded int64 tensor.

    >>> pad_rows([[3], [1, 2]])
    tensor([[ 3, -1],
            [ 1,  2]])
    """
    width = max([1, *map(len, rows)])
    padded = [[*row, *[fill] * (width - len(row))] for row in rows]
    return torch.tensor(padded, dtype=torch.long).reshape(len(rows), width)


def rank_scores(score_QC: Tensor, column_QP: Tensor, tolerance: float = TOLERANCE) -> TiedRanks:
    """Tie-aware ranks from scores.

    Args:
        score_QC: scores, -inf where a row has fewer candidates.
        column_QP: columns of the right candidates, padded with -1; -2 = not among them.
        tolerance: scores this close are equal.

    >>> ranks = rank_scores(torch.tensor([[3.0, 1.0, 1.0, 0.0]]), torch.tensor([[1]]))
    >>> ranks.greater_QP.item(), ranks.equal_QP.item()
    (1, 2)
    """
    score_QC, column_QP = to_float64_device(score_QC), to_float64_device(column_QP)

    # Counting by a sorted search needs no (Q, P, C) table of comparisons.
    C = score_QC.shape[1]
    own_QP = score_QC.gather(1, column_QP.clamp(min=0))
    sorted_QC = score_QC.sort(dim=1).values
    greater_QP = C - torch.searchsorted(sorted_QC, own_QP + tolerance, right=True)
    reached_QP = C - torch.searchsorted(sorted_QC, own_QP - tolerance)

    # Not at place C + 1: in a list shorter than k that would be among the first k.
    absent_QP = column_QP == ABSENT
    return TiedRanks(
        greater_QP.masked_fill(absent_QP, MISS),
        (reached_QP - greater_QP).masked_fill(absent_QP, 1),
        column_QP != PADDING,
    )


def rank_positives(
    query_QD: Tensor,
    candidate_ND: Tensor,
    positive_QP: Tensor | Sequence[Sequence[int]],
    *,
    local_QC: Tensor | Sequence[Sequence[int]] | None = None,
    chunk_numbers: int = _CHUNK_NUMBERS,
) -> TiedRanks:
    """Ranks of the right candidates among all candidates, or among each query's own list.

    Args:
        query_QD: query embeddings.
        candidate_ND: candidate embeddings.
        positive_QP: rows of the right candidates: a list per query, or a tensor padded with -1.
            -2, or a row outside the local list, is a miss.
        local_QC: rows of each query's own candidates, padded with -1; a row listed twice counts
            once.
        chunk_numbers: fp64 numbers held at once; changes memory, never the result.

    Raises:
        ValueError: on a NaN embedding, naming the rows: compared with NaN every rank is perfect.
    """
    parts = [
        rank_scores(score_qC, column_qP)
        for _, score_qC, column_qP in scored_positives(
            query_QD, candidate_ND, positive_QP, local_QC=local_QC, chunk_numbers=chunk_numbers
        )
    ]

    # Without queries there is nothing to join; the result keeps its shape.
    if not parts:
        positive_QP = _as_rows(positive_QP, float64_device(query_QD.device))

        return TiedRanks(positive_QP, positive_QP, positive_QP != PADDING)
    return TiedRanks.join(parts)


def scored_positives(
    query_QD: Tensor,
    candidate_ND: Tensor,
    positive_QP: Tensor | Sequence[Sequence[int]],
    *,
    local_QC: Tensor | Sequence[Sequence[int]] | None = None,
    chunk_numbers: int = _CHUNK_NUMBERS,
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Chunks of queries: their rows, fp64 scores (q, C) and columns (q, P) of the right ones.

    Args: see `rank_positives`.
    """
    check_finite(query_QD, "query")
    check_finite(candidate_ND, "candidate")

    query_QD, candidate_ND = to_float64_device(query_QD), to_float64_device(candidate_ND)
    device = query_QD.device
    positive_QP = _as_rows(positive_QP, device)
    local_QC = None if local_QC is None else _as_rows(local_QC, device)

    for rows, score_qC, column_qC in _scored(query_QD, candidate_ND, local_QC, chunk_numbers):
        yield rows, score_qC, _columns(positive_QP[rows], column_qC)


def search(
    query_QD: Tensor,
    candidate_ND: Tensor,
    k: int,
    *,
    local_QC: Tensor | Sequence[Sequence[int]] | None = None,
    chunk_numbers: int = _CHUNK_NUMBERS,
) -> tuple[Tensor, Tensor]:
    """The k best candidates of each query, best first; of equals the one listed first.

    Args:
        query_QD: query embeddings.
        candidate_ND: candidate embeddings.
        k: how many; fewer if there are fewer.
        local_QC: as in `rank_positives`.
        chunk_numbers: as in `rank_positives`.

    Returns:
        Scores (Q, k) and rows of the candidate table (Q, k), padded with -inf and -1.
    """
    check_finite(query_QD, "query")
    check_finite(candidate_ND, "candidate")
    query_QD, candidate_ND = to_float64_device(query_QD), to_float64_device(candidate_ND)
    local_QC = None if local_QC is None else _as_rows(local_QC, query_QD.device)

    k = min(k, len(candidate_ND) if local_QC is None else local_QC.shape[1])
    scores, columns = [query_QD.new_zeros(0, k).double()], [pad_rows([]).new_zeros(0, k)]

    # Left are local lists, and results without a query or a candidate.
    if local_QC is None and k and len(query_QD):
        return exact_top(query_QD.float(), candidate_ND.float(), k, TOLERANCE, chunk_numbers)

    for _, score_qC, column_qC in _scored(query_QD, candidate_ND, local_QC, chunk_numbers):
        score_qk, order_qk = best_first(score_qC, k, TOLERANCE)
        scores.append(score_qk)
        columns.append(order_qk if column_qC is None else column_qC.gather(1, order_qk))
    return torch.cat(scores), torch.cat([part.to(query_QD.device) for part in columns])


def check_finite(vector_ND: Tensor, what: str) -> None:
    """Raises a ValueError that names the rows of embeddings that are not finite."""
    suspect = (~vector_ND.sum(1).isfinite()).nonzero()[:, 0]  # without a mask as large as the data

    # A sum may also overflow where every number is finite.
    bad_n = ~vector_ND[suspect].isfinite().all(1)
    if not bad_n.any():
        return

    rows = suspect[bad_n].tolist()
    listing = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
    raise ValueError(
        f"NaN embedding: {what} row(s) {listing} ({len(rows)} of {len(vector_ND)}) hold NaN or "
        "infinity and would rank as perfect. The model diverged (lower its learning rate, use an "
        "earlier checkpoint), or these inputs are broken."
    )


def check_unit(vector_ND: Tensor, what: str) -> None:
    """Raises a ValueError if embeddings do not have length 1: a long candidate ranks high anywhere.

    Args:
        vector_ND: finite embeddings.
        what: names them in the error.
    """
    length_N = to_float64_device(vector_ND).double().norm(dim=1)
    wrong = ((length_N - 1).abs() > LENGTH_TOLERANCE).nonzero()[:, 0]
    if not len(wrong):
        return

    row = int(wrong[0])
    raise ValueError(
        f"{what}: {len(wrong)} of {len(vector_ND)} do not have length 1 (row {row} has "
        f"{float(length_N[row]):.4g}). Scores are dot products, in which a longer vector counts "
        "more: expected unit vectors. Where saved ones are scored, --normalise scales them."
    )


def _as_rows(rows: Tensor | Sequence[Sequence[int]], device: torch.device) -> Tensor:
    return (rows if isinstance(rows, Tensor) else pad_rows(rows)).to(device)


def _columns(positive_qP: Tensor, column_qC: Tensor | None) -> Tensor:
    """Rows of the candidate table to columns of this chunk's scores."""
    if column_qC is None:
        return positive_qP

    # A right candidate outside of the query's own list is a miss, not column 0.
    match_qPC = positive_qP[:, :, None] == column_qC[:, None, :]
    column_qP = match_qPC.to(torch.uint8).argmax(2).masked_fill(~match_qPC.any(2), ABSENT)
    return column_qP.masked_fill(positive_qP == PADDING, PADDING)


def _scored(
    query_QD: Tensor, candidate_ND: Tensor, local_QC: Tensor | None, chunk_numbers: int
) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
    """Chunks of queries: their rows, scores (q, C) and, for local lists, table rows (q, C)."""
    candidate_ND = candidate_ND.double()

    # A local list gathers C vectors for each query; the whole gallery is shared by all.
    per_query = len(candidate_ND) if local_QC is None else local_QC.shape[1] * query_QD.shape[1]
    step = max(1, chunk_numbers // max(1, per_query))

    for start in range(0, len(query_QD), step):
        rows = slice(start, start + step)
        query_qD = query_QD[rows].double()
        if local_QC is None:
            yield rows, query_qD @ candidate_ND.T, None
            continue

        column_qC = _without_repeats(local_QC[rows])
        score_qC = torch.einsum("qd,qcd->qc", query_qD, candidate_ND[column_qC.clamp(min=0)])
        yield rows, score_qC.masked_fill(column_qC == PADDING, -torch.inf), column_qC


def _without_repeats(column_qC: Tensor) -> Tensor:
    # The sort is stable, so that the first of equal rows is the one that stays.
    sorted_qC, order_qC = column_qC.sort(dim=1, stable=True)
    repeat_qC = torch.zeros_like(column_qC, dtype=torch.bool)
    repeat_qC[:, 1:] = sorted_qC[:, 1:] == sorted_qC[:, :-1]

    repeat_qC = torch.zeros_like(repeat_qC).scatter(1, order_qC, repeat_qC)
    return column_qC.masked_fill(repeat_qC, PADDING)
