"""Which columns attract and repel a row, by ids and by content."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mmemb.losses.infonce import contrastive_loss
from mmemb.losses.masks import merge_contents, target_masks
from mmemb.losses.terms import combine


def _ids(*ids: int) -> Tensor:
    return torch.tensor(ids)


def test_masks_by_hand() -> None:
    positive, negative = target_masks(
        target_ids_N=_ids(5, 5, 6, 7, 6, 8, -1),
        positive_ids_BP=torch.tensor([[5, 6], [5, -1]]),
        false_negative_ids_BF=torch.tensor([[8], [-1]]),
    )
    # Row 0: own column, first column of 6; 7 repels; 8 may be right; -1 is padding.
    assert positive.int().tolist() == [[1, 0, 1, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0]]
    assert negative.int().tolist() == [[0, 0, 0, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1, 0]]


def test_equal_contents_are_duplicates_whatever_they_are_called() -> None:
    ids, content = _ids(5, 6, 7, -1, 8), _ids(1, 2, 1, 2, 2)
    merged, listed = merge_contents(ids, content, torch.tensor([[7, 8], [99, -1]]))
    assert merged.tolist() == [5, 6, 5, -1, 6], "padding stays padding"
    assert listed.tolist() == [[5, 6], [99, -1]], "what is not in the batch keeps its id"


@pytest.mark.parametrize("same", [False, True])
def test_targets_of_equal_content_do_not_repel(same: bool) -> None:
    zeros = torch.zeros(4, 3)
    contents = _ids(1, 1, 3, 4) if same else _ids(1, 2, 3, 4)
    term = contrastive_loss(
        zeros,
        zeros,
        query_ids_B=torch.arange(4),
        target_ids_B=torch.arange(4),
        positive_ids_BP=torch.arange(4)[:, None],
        temperature=1.0,
        target_content_B=contents,
        negative_HD=torch.zeros(2, 3),
        negative_ids_H=_ids(9, -1),
        negative_content_H=_ids(4, 0) if same else _ids(9, 0),
    )
    forth = [4, 4, 5, 4] if same else [5] * 4  # columns that a row sees
    back = [3, 3, 4, 4] if same else [4] * 4
    expected = sum(map(math.log, forth + back)) / 8
    assert combine(term).item() == pytest.approx(expected, abs=1e-6)
