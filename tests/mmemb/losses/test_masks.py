"""Which columns attract and repel a row, by ids and by content."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mmemb.losses.ids import PairIds
from mmemb.losses.infonce import contrastive_loss
from mmemb.losses.masks import target_masks
from mmemb.losses.terms import combine


def _ids(*ids: int) -> Tensor:
    return torch.tensor(ids)


def test_masks_by_hand() -> None:
    positive, negative = target_masks(
        PairIds(
            query_B=_ids(1, 2),
            target_N=_ids(5, 5, 6, 7, 6, 8, -1),
            positive_BP=torch.tensor([[5, 6], [5, -1]]),
            false_negative_BF=torch.tensor([[8], [-1]]),
        ),
        slice(0, 2),
    )
    # Row 0: own column, first column of 6; 7 repels; 8 may be right; -1 is padding.
    assert positive.int().tolist() == [[1, 0, 1, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0]]
    assert negative.int().tolist() == [[0, 0, 0, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1, 0]]


def test_equal_contents_are_duplicates_whatever_they_are_called() -> None:
    ids, content = _ids(5, 6, 7, -1, 8), _ids(1, 2, 1, 2, 2)
    lists = torch.tensor([[7, 8], [99, -1]])
    merged = PairIds(_ids(1, 2), ids, lists, content, lists).merge_contents()
    assert merged.target_N.tolist() == [5, 6, 5, -1, 6], "padding stays padding"
    for listed in (merged.positive_BP, merged.false_negative_BF):
        assert listed.tolist() == [[5, 6], [99, -1]], "what is not in the batch keeps its id"


@pytest.mark.parametrize("same", [False, True])
def test_targets_of_equal_content_do_not_repel(same: bool) -> None:
    row_B = torch.arange(4)
    ids = PairIds(
        query_B=row_B,
        target_N=_ids(0, 1, 2, 3, 9, -1),
        positive_BP=row_B[:, None],
        content_N=_ids(1, 1, 3, 4, 4, 0) if same else _ids(1, 2, 3, 4, 9, 0),
    )
    term = contrastive_loss(torch.zeros(4, 3), torch.zeros(6, 3), ids, temperature=1.0)
    forth = [4, 4, 5, 4] if same else [5] * 4  # columns that a row sees
    back = [3, 3, 4, 4] if same else [4] * 4
    expected = sum(map(math.log, forth + back)) / 8
    assert combine(term).item() == pytest.approx(expected, abs=1e-6)
