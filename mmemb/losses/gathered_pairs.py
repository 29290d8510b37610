"""GatheredPairs: this rank's rows beside the columns of all ranks; the collectives of the losses.

Shapes: B rows of this rank, M rows of all ranks, N target columns (the M own targets of the rows,
then all hard negatives), D embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor, nn

from mmemb.distributed import gather_padded, gather_rows, rank_and_world
from mmemb.losses.ids import PairIds
from mmemb.records.padding import PADDING


@final
@dataclass(frozen=True, slots=True)
class GatheredPairs:
    """All that an InfoNCE loss of this rank's rows reads, in fp32 or fp64.

    Attributes:
        query_BD: this rank's queries; zeros in rows that take no part.
        target_ND: the targets of all ranks; row m's own is column m.
        query_MD: the queries of all ranks, columns of target to query; None = only query to target
            is wanted.
        ids: of the M rows and N columns.
        valid_M: bool, rows that take part.
        rows: where this rank's rows stand among the M.
    """

    query_BD: Tensor
    target_ND: Tensor
    query_MD: Tensor | None
    ids: PairIds
    valid_M: Tensor
    rows: slice

    @property
    def is_whole(self) -> bool:
        """True if this rank's rows are all there are, as in one process."""
        return len(self.query_BD) == len(self.valid_M)

    @property
    def own_target_BD(self) -> Tensor:
        """The own targets of this rank's rows."""
        return self.target_ND[self.rows]

    def prefix(self, dim: int) -> GatheredPairs:
        """Returns the first `dim` numbers of every vector, of unit length again (Matryoshka)."""
        if not 0 < dim < self.query_BD.shape[1]:
            raise ValueError(
                f"Matryoshka prefix {dim}: expected less than the embedding's "
                f"{self.query_BD.shape[1]}"
            )

        def cut(x: Tensor) -> Tensor:
            return nn.functional.normalize(x[:, :dim], dim=1)

        query_BD, query_MD = cut(self.query_BD), self.query_MD
        if query_MD is not None:
            query_MD = query_BD if self.is_whole else cut(query_MD)
        return replace(self, query_BD=query_BD, target_ND=cut(self.target_ND), query_MD=query_MD)


def gather_pairs(
    query_BD: Tensor,
    target_ND: Tensor,
    ids: PairIds,
    valid_B: Tensor | None = None,
    symmetric: bool = True,
) -> GatheredPairs:
    """Gathers vectors and ids of all ranks; arguments as in `contrastive_loss`."""
    ids = gather_ids(ids).merge_contents().drop_own_targets()
    if valid_B is None:
        valid_B = torch.ones(len(query_BD), dtype=torch.bool, device=query_BD.device)
    else:  # a NaN in a row that takes no part would spread by way of its gradient
        valid_B = valid_B.bool()
        query_BD = torch.where(valid_B[:, None], query_BD, 0.0)

    # Vectors travel in the type that the model gave them, and are cast afterwards.
    rank, world = rank_and_world()
    target_ND = _full(_gather_columns(target_ND, len(query_BD)))
    query_MD = gather_rows(query_BD) if symmetric and world > 1 else query_BD
    query_BD = _full(query_BD)
    return GatheredPairs(
        query_BD=query_BD,
        target_ND=target_ND,
        query_MD=(query_BD if world == 1 else _full(query_MD)) if symmetric else None,
        ids=ids,
        valid_M=gather_rows(valid_B),
        rows=slice(rank * len(query_BD), (rank + 1) * len(query_BD)),
    )


def gather_ids(ids: PairIds) -> PairIds:
    """Returns the ids of all ranks; they may differ in P and F, but not in B and H.

    Raises:
        ValueError: on every rank alike, if ranks hold unequal numbers of rows.
    """
    rows, others_BF = len(ids.query_B), ids.false_negative_BF
    # First, since this one compares the numbers of rows.
    positive_MP = gather_padded(ids.positive_BP, PADDING)
    return PairIds(
        query_B=gather_rows(ids.query_B),
        target_N=_gather_columns(ids.target_N, rows),
        positive_BP=positive_MP,
        content_N=None if ids.content_N is None else _gather_columns(ids.content_N, rows),
        false_negative_BF=None if others_BF is None else gather_padded(others_BF, PADDING),
    )


def _gather_columns(x_N: Tensor, rows: int) -> Tensor:
    """Own targets of all ranks, then hard negatives of all ranks."""
    if rank_and_world()[1] == 1 or len(x_N) == rows:
        return gather_rows(x_N)
    return torch.cat([gather_rows(x_N[:rows]), gather_rows(x_N[rows:])])


def _full(x: Tensor) -> Tensor:
    """In bf16 three digits would be left of cosine / tau."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
