"""PairIds: what the rows and the target columns of a contrastive loss are called.

Shapes: B rows, H hard negatives, N target columns (the B own targets of the rows, then the hard
negatives), P positives of a row, F false negatives of a row, K hard negatives of a row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from mmemb.records.batches import PairBatch
from mmemb.records.padding import PADDING


@final
@dataclass(frozen=True, slots=True)
class PairIds:
    """Ids of rows and columns; they alone decide which column attracts and which repels a row.

    Attributes:
        query_B: int64 content ids of the queries; equal ids are the same query.
        target_N: int64 ids of the columns; row b's own target is column b; `PADDING` = no target.
        positive_BP: ids of every right target of a row, filled up with `PADDING`.
        content_N: int64 hashes of what the columns hold: columns of equal content are duplicates,
            whatever their ids. None = ids alone decide.
        false_negative_BF: ids of targets that must not repel a row, filled up with `PADDING`.
    """

    query_B: Tensor
    target_N: Tensor
    positive_BP: Tensor
    content_N: Tensor | None = None
    false_negative_BF: Tensor | None = None

    @classmethod
    def from_batch(cls, batch: PairBatch) -> PairIds:
        """Returns the ids of a training batch, its hard negatives behind its targets."""
        target_N, content_N = batch.target_ids_B, batch.target_content_B
        if batch.negative_ids_BK is not None:
            target_N = torch.cat([target_N, batch.negative_ids_BK.flatten()])

        if content_N is not None and batch.negative_ids_BK is not None:
            assert batch.negative_content_BK is not None, "targets have contents, negatives none"
            content_N = torch.cat([content_N, batch.negative_content_BK.flatten()])

        return cls(batch.query_ids_B, target_N, batch.positive_ids_BP, content_N)

    def merge_contents(self) -> PairIds:
        """Returns ids in which columns of equal content have one id: that of the first of them.

        Lists of positives and of false negatives name that id, too.

        >>> ids = PairIds(torch.tensor([1, 2]), torch.tensor([5, 6, 7]),
        ...     torch.tensor([[7, 9], [6, -1]]), content_N=torch.tensor([1, 2, 1])).merge_contents()
        >>> ids.target_N.tolist(), ids.positive_BP.tolist()
        ([5, 6, 5], [[5, 9], [6, -1]])
        """
        if self.content_N is None:
            return self

        # Padding columns stay what they are, whatever their content.
        content_N = torch.where(self.target_N == PADDING, PADDING, self.content_N)
        contents, group_N = content_N.unique(return_inverse=True)
        places = torch.arange(len(self.target_N), device=self.target_N.device)
        last = torch.full_like(contents, len(self.target_N))
        merged_N = self.target_N[last.scatter_reduce(0, group_N, places, "amin")[group_N]]

        # Ids that are no column of this batch keep their name.
        sorted_N, order_N = self.target_N.sort(stable=True)

        def rename(ids_BP: Tensor) -> Tensor:
            place_BP = torch.searchsorted(sorted_N, ids_BP.contiguous()).clamp(max=len(places) - 1)
            is_column_BP = sorted_N[place_BP] == ids_BP
            return torch.where(is_column_BP, merged_N[order_N[place_BP]], ids_BP)

        others_BF = self.false_negative_BF
        return replace(
            self,
            target_N=merged_N,
            positive_BP=rename(self.positive_BP),
            content_N=None,
            false_negative_BF=None if others_BF is None else rename(others_BF),
        )

    def drop_own_targets(self) -> PairIds:
        """Returns ids whose lists of positives lack the columns of the list that name nothing but
        the rows' own targets, or padding: most batches have no other, and masks cost less.

        >>> PairIds(torch.tensor([1, 2]), torch.tensor([5, 6]),
        ...     torch.tensor([[5, 7, -1], [6, 6, -1]])).drop_own_targets().positive_BP.tolist()
        [[7], [6]]
        """
        own_B1 = self.target_N[: len(self.query_B), None]
        is_other_BP = (self.positive_BP != own_B1) & (self.positive_BP != PADDING)
        return replace(self, positive_BP=self.positive_BP[:, is_other_BP.any(0)])
