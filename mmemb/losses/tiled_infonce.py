"""InfoNCE in tiles of rows: the fast path of large batches, equal to `mmemb.losses.infonce`.

The dense definition keeps several (B, N) tensors until backward. Here a tile of rows meets all
columns, leaves its loss and its share of the gradients, and is gone; backward only scales what is
there. Shapes: B rows of this rank, b rows of a tile, M rows of all ranks, N target columns (the M
own targets of the rows, then hard negatives), C columns of one direction, K positive cells of a
tile, D embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from mmemb.losses.gathered_pairs import GatheredPairs
from mmemb.losses.masks import is_first, query_masks, repelled_targets, target_masks

TILE_NUMBERS = 7 * 2**17
"""Scores of a tile (3.5 MB in fp32): small beside the embeddings of a batch that needs tiles. Twice
as many are 5 to 10 % faster on two cores."""


def tiled_info_nce(
    pairs: GatheredPairs,
    temperature: Tensor | float,
    margin: float | None = None,
    dims: Sequence[int] = (),
    tile: int | None = None,
) -> Tensor:
    """Sum of the loss over this rank's valid rows, see `mmemb.losses.infonce.info_nce`.

    Args:
        pairs: vectors and ids.
        temperature: tau.
        margin: columns whose cosine exceeds the own one's by more than this do not repel.
        dims: Matryoshka prefixes beside the whole vectors.
        tile: rows that meet all columns together; None fits `TILE_NUMBERS`.
    """
    walk = TileWalk(pairs, is_first(pairs.ids.target_N), margin, tile)
    like = pairs.query_BD
    scale = 1 / torch.as_tensor(temperature, dtype=like.dtype, device=like.device)

    losses = []
    for width in (pairs, *(pairs.prefix(dim) for dim in dims)):
        # In one process the queries of all ranks are `query_BD`, which has one gradient.
        query_MD = None if width.is_whole else width.query_MD
        vectors = (width.query_BD, width.target_ND, query_MD)
        losses.append(_TiledInfoNce.apply(walk, width, scale, *vectors))
    return torch.stack(losses).mean()


@final
@dataclass(frozen=True, slots=True)
class TileWalk:
    """Inputs of a walk over tiles, beside the vectors of its width.

    Attributes:
        whole: ids, rows, and the whole vectors, which judge who is a false negative.
        first_N: columns with an id that no column before them has.
        margin: see `tiled_info_nce`.
        tile: rows of a tile, or None to fit `TILE_NUMBERS`.
    """

    whole: GatheredPairs
    first_N: Tensor
    margin: float | None
    tile: int | None

    @property
    def is_joint(self) -> bool:
        """True in one process with both directions: they read the same scores."""
        return self.whole.is_whole and self.whole.query_MD is not None

    @property
    def weight_B(self) -> Tensor:
        """Weight of each row in one direction: 0 if it takes no part."""
        share = 1.0 if self.whole.query_MD is None else 0.5
        valid_B = self.whole.valid_M[self.whole.rows]
        return share * valid_B.to(self.whole.query_BD.dtype)

    def tiles(self, num_columns: int) -> Iterator[slice]:
        """Yields consecutive rows of this rank, all of them once."""
        B = len(self.whole.query_BD)
        step = self.tile or max(1, TILE_NUMBERS // max(num_columns, 1))
        for start in range(0, B, step):
            yield slice(start, min(start + step, B))

    def among_all(self, rows: slice) -> slice:
        """Places of rows of this rank among those of all ranks."""
        start = self.whole.rows.start
        return slice(start + rows.start, start + rows.stop)


@final
@dataclass(frozen=True, slots=True)
class Gradients:
    """Sums of a walk's gradients; `query_MD` is None where `query_BD` are all queries."""

    scale: Tensor
    query_BD: Tensor
    target_ND: Tensor
    query_MD: Tensor | None


@final
class Workspace:
    """Memory of a walk's tiles: made anew for each of them, it would scatter the heap."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def scores(self, row_bD: Tensor, column_CD: Tensor) -> Tensor:
        """`row_bD @ column_CD.T`, valid until the next call."""
        out_bC = self._room("scores", row_bD, (len(row_bD), len(column_CD)))
        return torch.mm(row_bD, column_CD.T, out=out_bC)

    def whole_scores(
        self, score_bC: Tensor, is_whole: bool, row_bD: Tensor, column_CD: Tensor
    ) -> Tensor:
        """Scores of the whole vectors, which judge who is a false negative: `score_bC`, unless
        those are of a prefix."""
        if is_whole:
            return score_bC
        out_bC = self._room("whole", row_bD, (len(row_bD), len(column_CD)))
        return torch.mm(row_bD, column_CD.T, out=out_bC)

    def difference(self, score_bC: Tensor, less_C: Tensor) -> Tensor:
        """`score_bC - less_C`, which may be overwritten, valid until the next call."""
        out_bC = self._room("difference", score_bC, (len(score_bC), score_bC.shape[1]))
        return torch.sub(score_bC, less_C, out=out_bC)

    def _room(self, name: str, like: Tensor, shape: tuple[int, int]) -> Tensor:
        size = shape[0] * shape[1]
        if name not in self._buffers or self._buffers[name].numel() < size:
            self._buffers[name] = like.new_empty(size)
        return self._buffers[name][:size].view(shape)


@final
class _TiledInfoNce(torch.autograd.Function):
    """The loss of one width; its gradients are made on the way."""

    @staticmethod
    def forward(
        ctx: Any, walk: TileWalk, width: GatheredPairs, scale: Tensor, *vectors: Tensor | None
    ) -> Tensor:
        zeros = (None if x is None else torch.zeros_like(x) for x in (scale, *vectors))
        ctx.gradients = Gradients(*zeros)
        run = joint_pass if walk.is_joint else separate_passes
        return run(walk, width, scale, ctx.gradients)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError(
                "The tiled loss was differentiated twice; its gradients are used up by the first "
                "backward. Compute the loss again."
            )
        sums, ctx.gradients = ctx.gradients, None
        by_input = (sums.scale, sums.query_BD, sums.target_ND, sums.query_MD)
        return None, None, *(None if g is None else g.mul_(upstream) for g in by_input)


def separate_passes(
    walk: TileWalk, width: GatheredPairs, scale: Tensor, gradients: Gradients
) -> Tensor:
    """One direction after the other; each is a product for the scores and two for gradients."""
    whole = walk.whole

    def query_to_target(rows: slice) -> tuple[Tensor, Tensor]:
        return target_masks(whole.ids, walk.among_all(rows), walk.first_N)

    def target_to_query(rows: slice) -> tuple[Tensor, Tensor]:
        return query_masks(whole.ids, walk.among_all(rows), whole.valid_M)

    # Masks are made a tile at a time: those of all rows would be as large as all scores.
    total = _separate_pass(
        walk,
        query_to_target,
        (width.query_BD, width.target_ND),
        (whole.query_BD, whole.target_ND),
        scale,
        (gradients.scale, gradients.query_BD, gradients.target_ND),
    )
    if width.query_MD is None or whole.query_MD is None or gradients.query_MD is None:
        return total

    of_own_targets_BD = gradients.target_ND[whole.rows]
    return total + _separate_pass(
        walk,
        target_to_query,
        (width.own_target_BD, width.query_MD),
        (whole.own_target_BD, whole.query_MD),
        scale,
        (gradients.scale, of_own_targets_BD, gradients.query_MD),
    )


def _separate_pass(
    walk: TileWalk,
    masks: Callable[[slice], tuple[Tensor, Tensor]],
    vectors: tuple[Tensor, Tensor],
    whole: tuple[Tensor, Tensor],
    scale: Tensor,
    gradients: tuple[Tensor, Tensor, Tensor],
) -> Tensor:
    """One direction: loss of rows (B, D) among columns (C, D).

    Args:
        walk: tiles of rows.
        masks: columns that attract and columns that repel the rows of a tile.
        vectors: of rows and columns, in this width.
        whole: the same vectors before a prefix was cut.
        scale: 1 / tau.
        gradients: of the scale, the rows and the columns; they grow.
    """
    (row_BD, column_CD), work = vectors, Workspace()
    of_scale, of_rows_BD, of_columns_CD = gradients
    total, weight_B = torch.zeros_like(scale), walk.weight_B

    for rows in walk.tiles(len(column_CD)):
        row_bD = row_BD[rows]
        positive_bC, negative_bC = masks(rows)
        score_bC = work.scores(row_bD * scale, column_CD)

        if walk.margin is not None:
            is_whole = column_CD is whole[1]
            whole_bC = work.whole_scores(score_bC, is_whole, whole[0][rows] * scale, whole[1])
            own_b = whole_bC.diagonal(walk.among_all(rows).start)[: len(row_bD)]
            mask_false_negatives(negative_bC, whole_bC, (own_b + walk.margin * scale)[:, None])

        loss, gradient_bC = nce_of_tile(score_bC, positive_bC, negative_bC, weight_B[rows])
        total += loss
        parts = (of_scale, of_rows_BD[rows], of_columns_CD)
        accumulate_gradients(gradient_bC, row_bD, column_CD, scale, parts)
    return total


def joint_pass(walk: TileWalk, width: GatheredPairs, scale: Tensor, gradients: Gradients) -> Tensor:
    """Both directions of one process in four products instead of six.

    A first walk adds up how strongly each target is repelled; then a tile of scores has all that
    the gradients of both directions need.
    """
    ids, valid_B, weight_B = walk.whole.ids, walk.whole.valid_M, walk.weight_B
    everyone, work, is_whole = slice(0, len(valid_B)), Workspace(), width is walk.whole
    floor = torch.finfo(scale.dtype).min / 2

    # Target to query has one positive a row, so its loss is known before the second walk.
    limit_B = None if walk.margin is None else _own_scores(walk.whole, scale) + walk.margin * scale
    repel_B = _column_repulsion(walk, width, scale, limit_B, work)
    gap_B = repel_B - _own_scores(width, scale)
    pull_B = gap_B.sigmoid() * weight_B
    total = (softplus(gap_B) * weight_B).sum()

    for rows in walk.tiles(len(width.target_ND)):
        row_bD, column_ND = width.query_BD[rows], width.target_ND
        positive_bN, negative_bN = target_masks(ids, rows, walk.first_N)
        repelled_bB = repelled_targets(ids, rows, everyone, valid_B)
        score_bN = work.scores(row_bD * scale, column_ND)

        # The limit of a cell is that of its query in one direction, of its target in the other.
        if limit_B is not None:
            whole_row_bD = walk.whole.query_BD[rows] * scale
            whole_bN = work.whole_scores(score_bN, is_whole, whole_row_bD, walk.whole.target_ND)
            mask_false_negatives(negative_bN, whole_bN, limit_B[rows, None])
            mask_false_negatives(repelled_bB, whole_bN[:, everyone], limit_B)

        away_bB = work.difference(score_bN[:, everyone], repel_B)  # before scores are overwritten
        loss, gradient_bN = nce_of_tile(score_bN, positive_bN, negative_bN, weight_B[rows])
        total += loss

        # A query's share in what repels each target, times the pull of that target's own query.
        away_bB.masked_fill_(~repelled_bB, floor).exp_()
        gradient_bN[:, everyone].addcmul_(away_bB, pull_B)
        gradient_bN.diagonal(rows.start)[: len(row_bD)].sub_(pull_B[rows])
        parts = (gradients.scale, gradients.query_BD[rows], gradients.target_ND)
        accumulate_gradients(gradient_bN, row_bD, column_ND, scale, parts)
    return total


def _column_repulsion(
    walk: TileWalk, width: GatheredPairs, scale: Tensor, limit_B: Tensor | None, work: Workspace
) -> Tensor:
    """(B,), the logsumexp over the queries that repel a target: a running maximum and sum."""
    ids, valid_B = walk.whole.ids, walk.whole.valid_M
    everyone, dtype = slice(0, len(valid_B)), torch.finfo(scale.dtype)
    most_B = torch.full_like(width.query_BD[:, 0], dtype.min / 2)
    sum_B = torch.zeros_like(most_B)

    for rows in walk.tiles(len(width.target_ND)):
        repelled_bB = repelled_targets(ids, rows, everyone, valid_B)
        score_bB = work.scores(width.query_BD[rows] * scale, width.own_target_BD)
        if limit_B is not None:
            whole_row_bD = walk.whole.query_BD[rows] * scale
            whole_bB = work.whole_scores(
                score_bB, width is walk.whole, whole_row_bD, walk.whole.own_target_BD
            )
            mask_false_negatives(repelled_bB, whole_bB, limit_B)

        score_bB.masked_fill_(~repelled_bB, dtype.min / 2)
        # Rescales the sum so far to the new maximum, so that no exp overflows.
        higher_B = torch.maximum(most_B, score_bB.amax(0))
        sum_B.mul_((most_B - higher_B).exp_())
        sum_B.add_(score_bB.sub_(higher_B).exp_().mul_(repelled_bB).sum(0))
        most_B = higher_B
    return most_B + sum_B.clamp(min=dtype.tiny).log()


def mask_false_negatives(mask_bC: Tensor, score_bC: Tensor, limit: Tensor) -> None:
    """Takes columns out of a mask whose score exceeds the limit, (b, 1) or (C,): that of the own
    column plus a margin."""
    mask_bC &= score_bC <= limit


def accumulate_gradients(
    gradient_bC: Tensor,
    row_bD: Tensor,
    column_CD: Tensor,
    scale: Tensor,
    sums: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Adds a tile's gradient by its scores to those of the scale, of its rows, of all columns."""
    of_scale, of_rows_bD, of_columns_CD = sums
    by_row_bD = gradient_bC @ column_CD
    of_scale += (by_row_bD * row_bD).sum()
    of_rows_bD += by_row_bD.mul_(scale)
    of_columns_CD.addmm_(gradient_bC.T, row_bD * scale)


def nce_of_tile(
    score_bC: Tensor, positive_bC: Tensor, negative_bC: Tensor, weight_b: Tensor
) -> tuple[Tensor, Tensor]:
    """Weighted loss of a tile's rows, and its gradient by the scores, which it overwrites.

    Returns:
        The weighted sum over rows (0-d), and the gradient (b, C).
    """
    row_K, column_K = positive_bC.nonzero(as_tuple=True)
    attract_K = score_bC[row_K, column_K]

    # A finite floor: a row without negatives has no -inf - -inf, and its loss is 0.
    score_bC.masked_fill_(~negative_bC, torch.finfo(score_bC.dtype).min / 2)
    most_b1 = score_bC.amax(1, keepdim=True)
    share_bC = score_bC.sub_(most_b1).exp_()  # in place: of the negatives, not yet of sum 1
    sum_b = share_bC.sum(1)
    repel_b = most_b1[:, 0] + sum_b.log()

    num_b = torch.bincount(row_K, minlength=len(score_bC))
    gap_K, weight_K = repel_b[row_K] - attract_K, (weight_b / num_b)[row_K]
    loss = (softplus(gap_K) * weight_K).sum()

    # d softplus = sigmoid: a positive pulls by it, the negatives share the push of all positives.
    pull_K = gap_K.sigmoid() * weight_K
    push_b = torch.zeros_like(repel_b).index_add_(0, row_K, pull_K)
    share_bC.mul_((push_b / sum_b)[:, None])
    share_bC[row_K, column_K] -= pull_K
    return loss, share_bC


def _own_scores(width: GatheredPairs, scale: Tensor) -> Tensor:
    return torch.einsum("bd,bd->b", width.query_BD, width.own_target_BD) * scale
