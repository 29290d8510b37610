"""The walks over tiles of rows behind `mmemb.losses.tiled_nce`, and what one tile costs.

Apart, each direction is a product for the scores and two for the gradients. In one process both
directions read the same scores: together they are four products instead of six, since the first of
two walks only adds up how strongly each target is repelled.
Shapes: B rows of this rank, b rows of a tile, N target columns, M queries of all ranks, D
embedding, K positive cells of a tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import softplus

TILE_NUMBERS = 7 * 2**17
"""Scores of a tile (3.5 MB in fp32): small beside the embeddings of a batch that needs tiles. Twice
as many are 5 to 10 % faster on two cores."""

Masks = Callable[[slice], tuple[Tensor, Tensor]]
"""Rows of a tile -> which columns attract them and which repel them, bool (b, columns) each."""


@final
@dataclass(frozen=True, slots=True)
class Problem:
    """What a tile needs beside embeddings.

    Attributes:
        forth: rows are queries, columns all targets.
        back: rows are own targets, columns all queries; None = one direction alone.
        repelled: rows are queries of this rank, columns their targets: which query repels which
            target, bool (b, B); `back` the other way round, for one process.
        valid_B: rows that take part.
        offset: row b's own column is `offset + b`.
        margin: a column whose cosine exceeds that of the row's own one by more than this is no
            negative: it may be right, too. None = all repel.
        tile: rows of a tile, or None to fit `TILE_NUMBERS`.
    """

    forth: Masks
    back: Masks | None
    repelled: Callable[[slice], Tensor]
    valid_B: Tensor
    offset: int
    margin: float | None = None
    tile: int | None = None

    @property
    def share(self) -> float:
        """Of each direction in the loss."""
        return 1.0 if self.back is None else 0.5

    def tiles(self, num_columns: int) -> Iterator[slice]:
        """Consecutive rows, all of them once."""
        step = self.tile or max(1, TILE_NUMBERS // max(num_columns, 1))
        for start in range(0, len(self.valid_B), step):
            yield slice(start, min(start + step, len(self.valid_B)))


@final
@dataclass(frozen=True, slots=True)
class Embeddings:
    """One width of the embeddings: all of it, or a Matryoshka prefix.

    Attributes:
        query_BD: this rank's queries.
        target_ND: all targets.
        query_MD: all ranks' queries; None = `query_BD` are all there are.
    """

    query_BD: Tensor
    target_ND: Tensor
    query_MD: Tensor | None = None

    @property
    def columns_of_back(self) -> Tensor:
        """All queries there are."""
        return self.query_BD if self.query_MD is None else self.query_MD


@final
class Workspace:
    """Two tiles of memory for a whole sweep: made anew for each, they would scatter the heap."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def scores(self, row_bD: Tensor, column_ND: Tensor) -> Tensor:
        """`row_bD @ column_ND.T`, valid until the next call."""
        out_bN = self._room("scores", row_bD, (len(row_bD), len(column_ND)))
        return torch.mm(row_bD, column_ND.T, out=out_bN)

    def difference(self, score_bN: Tensor, less_N: Tensor) -> Tensor:
        """`score_bN - less_N`, which may be overwritten, valid until the next call."""
        out_bN = self._room("difference", score_bN, (len(score_bN), score_bN.shape[1]))
        return torch.sub(score_bN, less_N, out=out_bN)

    def _room(self, name: str, like: Tensor, shape: tuple[int, int]) -> Tensor:
        size = shape[0] * shape[1]
        if name not in self._buffers or self._buffers[name].numel() < size:
            self._buffers[name] = like.new_empty(size)
        return self._buffers[name][:size].view(shape)


Gradients = list[Tensor | None]
"""Of the scale, then of `query_BD`, `target_ND`, `query_MD` of every width."""


def sweep(
    problem: Problem, scale: Tensor, tensors: Sequence[Tensor | None], wants_gradient: bool
) -> tuple[Tensor, Gradients | None]:
    """Sum of the loss over valid rows, mean over widths, and its gradients if they are wanted."""
    widths = [Embeddings(*tensors[i : i + 3]) for i in range(0, len(tensors), 3)]  # type: ignore[arg-type]
    gradients: Gradients | None = None
    if wants_gradient:
        zeros = [None if x is None else torch.zeros_like(x) for x in tensors]
        gradients = [torch.zeros_like(scale), *zeros]
    if problem.back is not None and widths[0].query_MD is None:
        return _together(problem, scale, widths, gradients), gradients
    total = _apart(problem, problem.forth, scale, widths, gradients, back=False)
    if problem.back is not None:
        total += _apart(problem, problem.back, scale, widths, gradients, back=True)
    return total, gradients


def _apart(
    problem: Problem,
    masks: Masks,
    scale: Tensor,
    widths: Sequence[Embeddings],
    gradients: Gradients | None,
    *,
    back: bool,
) -> Tensor:
    """One direction by itself."""
    total, work = torch.zeros_like(scale), Workspace()
    share = problem.share / len(widths)
    for rows in problem.tiles(len(widths[0].target_ND)):
        own = slice(rows.start + problem.offset, rows.stop + problem.offset)
        positive_bN, negative_bN = masks(rows)
        for number, width in enumerate(widths):
            row_bD = width.target_ND[own] if back else width.query_BD[rows]
            column_ND = width.columns_of_back if back else width.target_ND
            score_bN = work.scores(row_bD * scale, column_ND)
            if problem.margin is not None and number == 0:
                own_b = score_bN.diagonal(own.start)[: len(row_bD)]
                negative_bN &= score_bN <= (own_b + problem.margin * scale)[:, None]
            weight_b = share * problem.valid_B[rows].to(scale.dtype)
            loss, grad_bN = nce_of_rows(
                score_bN, positive_bN, negative_bN, weight_b, gradients is not None
            )
            total += loss
            if gradients is not None:
                query_BD, target_ND, query_MD = gradients[1 + 3 * number : 4 + 3 * number]
                of_rows = target_ND[own] if back else query_BD[rows]
                of_columns = (query_BD if query_MD is None else query_MD) if back else target_ND
                _spread(grad_bN, row_bD, column_ND, scale, (gradients[0], of_rows, of_columns))
    return total


def _together(
    problem: Problem, scale: Tensor, widths: Sequence[Embeddings], gradients: Gradients | None
) -> Tensor:
    """Both directions of one process."""
    B, share = len(problem.valid_B), problem.share / len(widths)
    floor, work = torch.finfo(scale.dtype).min / 2, Workspace()
    own = [torch.einsum("bd,bd->b", w.query_BD, w.target_ND[:B]) * scale for w in widths]
    repel = _column_repulsion(problem, scale, widths, own[0], work)
    gaps = [repel_B - own_B for repel_B, own_B in zip(repel, own, strict=True)]
    weight_B = share * problem.valid_B.to(scale.dtype)
    pulls = [gap_B.sigmoid() * weight_B for gap_B in gaps]
    total = torch.stack([(softplus(gap_B) * weight_B).sum() for gap_B in gaps]).sum()
    for rows in problem.tiles(len(widths[0].target_ND)):
        positive_bN, negative_bN = problem.forth(rows)
        repelled_bB = problem.repelled(rows)
        for number, width in enumerate(widths):
            row_bD, column_ND = width.query_BD[rows], width.target_ND
            score_bN = work.scores(row_bD * scale, column_ND)
            if number == 0:
                _hide_near(problem, scale, own[0], rows, score_bN, negative_bN, repelled_bB)
            if gradients is not None:
                back_bB = work.difference(score_bN[:, :B], repel[number])
            loss, grad_bN = nce_of_rows(
                score_bN, positive_bN, negative_bN, weight_B[rows], gradients is not None
            )
            total += loss
            if gradients is None:
                continue
            back_bB.masked_fill_(~repelled_bB, floor).exp_()
            grad_bN[:, :B].addcmul_(back_bB, pulls[number])
            grad_bN.diagonal(rows.start)[: len(row_bD)].sub_(pulls[number][rows])
            query_BD, target_ND, _ = gradients[1 + 3 * number : 4 + 3 * number]
            parts = (gradients[0], query_BD[rows], target_ND)
            _spread(grad_bN, row_bD, column_ND, scale, parts)
    return total


def _column_repulsion(
    problem: Problem,
    scale: Tensor,
    widths: Sequence[Embeddings],
    own_B: Tensor,
    work: Workspace,
) -> list[Tensor]:
    """For every width (B,): the logsumexp over the queries that repel a target."""
    B = len(problem.valid_B)
    floor = torch.finfo(scale.dtype).min / 2
    most = [torch.full_like(own_B, floor) for _ in widths]
    sums = [torch.zeros_like(own_B) for _ in widths]
    for rows in problem.tiles(len(widths[0].target_ND)):
        repelled_bB = problem.repelled(rows)
        for number, width in enumerate(widths):
            score_bB = work.scores(width.query_BD[rows] * scale, width.target_ND[:B])
            if number == 0:
                _hide_near(problem, scale, own_B, rows, score_bB, None, repelled_bB)
            score_bB.masked_fill_(~repelled_bB, floor)
            higher_B = torch.maximum(most[number], score_bB.amax(0))
            sums[number].mul_((most[number] - higher_B).exp_())
            sums[number].add_(score_bB.sub_(higher_B).exp_().mul_(repelled_bB).sum(0))
            most[number] = higher_B
    tiny = torch.finfo(scale.dtype).tiny
    return [most_B + sum_B.clamp(min=tiny).log() for most_B, sum_B in zip(most, sums, strict=True)]


def _hide_near(
    problem: Problem,
    scale: Tensor,
    own_B: Tensor,
    rows: slice,
    score_bN: Tensor,
    negative_bN: Tensor | None,
    repelled_bB: Tensor,
) -> None:
    """Takes out of both masks what is nearer than the own one by the margin."""
    if problem.margin is None:
        return
    limit_B = own_B + problem.margin * scale
    if negative_bN is not None:
        negative_bN &= score_bN <= limit_B[rows][:, None]
    repelled_bB &= score_bN[:, : len(own_B)] <= limit_B


def _spread(
    grad_bN: Tensor,
    row_bD: Tensor,
    column_ND: Tensor,
    scale: Tensor,
    gradients: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Adds a tile's gradient by its scores to those of the scale, its rows and all columns."""
    of_scale, of_rows, of_columns = gradients
    part_bD = grad_bN @ column_ND
    of_scale += (part_bD * row_bD).sum()
    of_rows += part_bD.mul_(scale)
    of_columns.addmm_(grad_bN.T, row_bD * scale)


def nce_of_rows(
    score_bN: Tensor,
    positive_bN: Tensor,
    negative_bN: Tensor,
    weight_b: Tensor,
    wants_gradient: bool = True,
) -> tuple[Tensor, Tensor]:
    """The loss of some rows, and its gradient by the scores, which are overwritten with it.

    `L_i = mean over positives p of softplus(repel_i - s_ip)`, `repel_i` the logsumexp over the
    negatives (METHOD 6).

    Returns:
        The sum over rows (0-d), each times its weight, and the gradient (b, N).
    """
    row_K, column_K = positive_bN.nonzero(as_tuple=True)
    attract_K = score_bN[row_K, column_K]
    # A finite floor: a row without negatives has no -inf - -inf, and loses nothing.
    score_bN.masked_fill_(~negative_bN, torch.finfo(score_bN.dtype).min / 2)
    most_b1 = score_bN.amax(1, keepdim=True)
    share_bN = score_bN.sub_(most_b1).exp_()  # in place: of the negatives, not yet of sum 1
    sum_b = share_bN.sum(1)
    repel_b = most_b1[:, 0] + sum_b.log()
    num_b = torch.bincount(row_K, minlength=len(score_bN)).clamp(min=1)
    gap_K, weight_K = repel_b[row_K] - attract_K, (weight_b / num_b)[row_K]
    loss = (softplus(gap_K) * weight_K).sum()
    if not wants_gradient:
        return loss, score_bN
    pull_K = gap_K.sigmoid() * weight_K
    push_b = torch.zeros_like(repel_b).index_add_(0, row_K, pull_K)
    share_bN.mul_((push_b / sum_b)[:, None])
    share_bN[row_K, column_K] -= pull_K
    return loss, share_bN
