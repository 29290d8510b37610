"""InfoNCE in tiles of rows: memory O(tile), the gradient is made on the way (METHOD 6).

A dense loss keeps several (B, N) tensors until backward. Here a tile of rows meets all columns,
leaves its loss and its share of the gradients, and is gone; backward only scales what is there. Per
tile that is one product for the scores and two for the gradients, as in a dense loss.
Shapes: B rows of this rank, b rows of a tile, N target columns, M queries of all ranks, D
embedding, K positive cells of a tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE_NUMBERS = 2**21
"""Scores of a tile (8 MB in fp32): small beside the embeddings of a batch that needs tiles, and
large enough for matrix products to run at full speed."""

Masks = Callable[[slice], tuple[Tensor, Tensor]]
"""Rows of a tile -> which columns attract them and which repel them, bool (b, columns) each."""


@final
@dataclass(frozen=True, slots=True)
class Direction:
    """One direction of the loss.

    Attributes:
        masks: positives and negatives of a tile.
        share: of this direction in the loss.
        margin: a column whose cosine exceeds that of the row's own one by more than this is no
            negative: it may be right, too. None = all repel.
    """

    masks: Masks
    share: float = 1.0
    margin: float | None = None


@final
@dataclass(frozen=True, slots=True)
class Problem:
    """What a tile needs beside embeddings.

    Attributes:
        forth: rows are queries, columns all targets.
        back: rows are own targets, columns all queries; None = one direction alone.
        valid_B: rows that take part.
        offset: row b's own column is `offset + b`.
        tile: rows of a tile, or None to fit `TILE_NUMBERS`.
    """

    forth: Direction
    back: Direction | None
    valid_B: Tensor
    offset: int
    tile: int | None = None

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


def nce_sum(widths: Sequence[Embeddings], scale: Tensor, problem: Problem) -> Tensor:
    """Sum over this rank's valid rows of their loss, mean over widths, with gradient.

    Args:
        widths: the whole embeddings first; their scores decide about false negatives.
        scale: 1 / tau, 0-d, with gradient or without.
        problem: masks, tiles and what else is no embedding.
    """
    tensors = [x for w in widths for x in (w.query_BD, w.target_ND, w.query_MD)]
    return _TiledNce.apply(problem, scale, *tensors)


@final
class _TiledNce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, problem: Problem, scale: Tensor, *tensors: Tensor | None) -> Tensor:
        # Under autocast the products would be bf16: three digits are too few for s / 0.02.
        with torch.autocast(scale.device.type, enabled=False):
            sweep = _Sweep(problem, scale, tensors, any(ctx.needs_input_grad))
            total = sweep.run()
        ctx.gradients = sweep.gradients if sweep.wants_gradient else None
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError(
                "The tiled loss was differentiated twice; its gradients are used up by the first "
                "backward. Compute the loss again."
            )
        gradients, ctx.gradients = ctx.gradients, None
        return None, *(None if g is None else g.mul_(upstream) for g in gradients)


@final
class _Sweep:
    """Walks over the tiles once. `gradients`: of the scale, then of every tensor."""

    def __init__(
        self,
        problem: Problem,
        scale: Tensor,
        tensors: Sequence[Tensor | None],
        wants_gradient: bool,
    ) -> None:
        self.problem, self.scale, self.wants_gradient = problem, scale, wants_gradient
        self.widths = [Embeddings(*tensors[i : i + 3]) for i in range(0, len(tensors), 3)]  # type: ignore[arg-type]
        self.gradients: list[Tensor | None] = []
        if wants_gradient:
            self.gradients = [torch.zeros_like(scale)]
            self.gradients += [None if x is None else torch.zeros_like(x) for x in tensors]

    def run(self) -> Tensor:
        """The loss; fills `gradients`."""
        total = torch.zeros_like(self.scale)
        for rows in self.problem.tiles(len(self.widths[0].target_ND)):
            total += self._direction(self.problem.forth, rows, back=False)
            if self.problem.back is not None:
                total += self._direction(self.problem.back, rows, back=True)
        return total

    def _direction(self, direction: Direction, rows: slice, *, back: bool) -> Tensor:
        problem = self.problem
        own = slice(rows.start + problem.offset, rows.stop + problem.offset)
        positive_bN, negative_bN = direction.masks(rows)
        share = direction.share / len(self.widths)
        total = torch.zeros_like(self.scale)
        for number, width in enumerate(self.widths):
            columns = width.query_BD if width.query_MD is None else width.query_MD
            row_bD = width.target_ND[own] if back else width.query_BD[rows]
            column_ND = columns if back else width.target_ND
            scaled_bD = row_bD * self.scale
            score_bN = scaled_bD @ column_ND.T
            if direction.margin is not None and number == 0:
                own_b = score_bN.gather(1, self._own_column(rows, score_bN)).squeeze(1)
                limit_b = own_b + direction.margin * self.scale
                negative_bN &= score_bN <= limit_b[:, None]
            loss, grad_bN = nce_of_rows(
                score_bN, positive_bN, negative_bN, problem.valid_B[rows], self.wants_gradient
            )
            total += share * loss
            if self.wants_gradient:
                self._add(number, back, rows, own, grad_bN.mul_(share), row_bD, column_ND)
        return total

    def _own_column(self, rows: slice, score_bN: Tensor) -> Tensor:
        own_b = torch.arange(rows.start, rows.stop, device=score_bN.device)
        return (own_b + self.problem.offset)[:, None]

    def _add(
        self,
        number: int,
        back: bool,
        rows: slice,
        own: slice,
        grad_bN: Tensor,
        row_bD: Tensor,
        column_ND: Tensor,
    ) -> None:
        of_scale, *of_tensors = self.gradients
        query_BD, target_ND, query_MD = of_tensors[3 * number : 3 * number + 3]
        of_rows = target_ND[own] if back else query_BD[rows]
        of_columns = (query_BD if query_MD is None else query_MD) if back else target_ND
        part_bD = grad_bN @ column_ND
        of_scale += (part_bD * row_bD).sum()
        of_rows.add_(part_bD.mul_(self.scale))
        of_columns.addmm_(grad_bN.T, row_bD * self.scale)


def nce_of_rows(
    score_bN: Tensor,
    positive_bN: Tensor,
    negative_bN: Tensor,
    valid_b: Tensor,
    wants_gradient: bool = True,
) -> tuple[Tensor, Tensor]:
    """The loss of some rows, and its gradient by the scores, which are overwritten with it.

    `L_i = mean over positives p of softplus(repel_i - s_ip)`, `repel_i` the logsumexp over the
    negatives (METHOD 6).

    Returns:
        The sum over valid rows (0-d), and the gradient (b, N).
    """
    row_K, column_K = positive_bN.nonzero(as_tuple=True)
    attract_K = score_bN[row_K, column_K]
    # A finite floor: a row without negatives has no -inf - -inf, and loses nothing.
    score_bN.masked_fill_(~negative_bN, torch.finfo(score_bN.dtype).min / 2)
    repel_b = score_bN.logsumexp(1)
    weight_b = valid_b.to(score_bN.dtype) / positive_bN.sum(1).clamp(min=1)
    gap_K, weight_K = repel_b[row_K] - attract_K, weight_b[row_K]
    loss = (torch.nn.functional.softplus(gap_K) * weight_K).sum()
    if not wants_gradient:
        return loss, score_bN
    pull_K = gap_K.sigmoid() * weight_K
    push_b = torch.zeros_like(repel_b).index_add_(0, row_K, pull_K)
    score_bN.sub_(repel_b[:, None]).exp_().mul_(push_b[:, None])
    score_bN[row_K, column_K] -= pull_K
    return loss, score_bN
