"""Whose rationale one is ranked among: donors of the same task, worker and depth (METHOD 5).

Shapes: B pairs, K own rationales, J donors' ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmemb.records.hashing import stable_hash
from mmemb.records.pairs import Pair
from mmemb.records.rationales import Rationale


def placebo_donors(
    pairs: Sequence[Pair], pools: Sequence[Sequence[Rationale]], row: int, num_donors: int
) -> list[Rationale]:
    """Rationales about other concepts, drawn by key: `num_donors` of each worker and depth.

    Args:
        pairs: of a batch.
        pools: their rationales.
        row: the pair that they are for.
        num_donors: of each kind that the pair's own rationales have; fewer if there are no more.
    """
    pair = pairs[row]
    others = sorted(
        (stable_hash("donor", pair.key, other.key), number)
        for number, other in enumerate(pairs)
        if other.task == pair.task and other.concept != pair.concept
    )
    donors: list[Rationale] = []
    for kind in dict.fromkeys(map(_kind, pools[row])):
        of_kind = ([r for r in pools[number] if _kind(r) == kind] for _, number in others)
        donors += [pool[0] for pool in of_kind if pool][:num_donors]
    return donors


def comparable(own: Sequence[Sequence[Rationale]], donors: Sequence[Sequence[Rationale]]) -> Tensor:
    """bool (B, K, J), whether an own rationale and a donor's one are of one worker and depth."""
    num_own, num_donors = (max(map(len, pools), default=0) for pools in (own, donors))
    alike_BKJ = torch.zeros(len(own), num_own, num_donors, dtype=torch.bool)
    for row, (ours, theirs) in enumerate(zip(own, donors, strict=True)):
        for k, rationale in enumerate(ours):
            for j, donor in enumerate(theirs):
                alike_BKJ[row, k, j] = _kind(donor) == _kind(rationale)
    return alike_BKJ


def apart(score_BCR: Tensor, num_own: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Columns none, own, donors' of equal places in all rows, from rows that hold them together.

    Args:
        score_BCR: columns are none, then a row's own rationales, then its donors' ones; NaN pads.
        num_own: how many own ones each row has.
        shape: (K, J), the most of either kind.

    Returns:
        (B, C, 1 + K + J), NaN where a row has fewer.
    """
    num_rows, num_candidates, num_columns = score_BCR.shape
    most_own, most_foreign = shape
    found = score_BCR.new_full((num_rows, num_candidates, 1 + most_own + most_foreign), torch.nan)
    for row, own in enumerate(num_own):
        found[row, :, : 1 + own] = score_BCR[row, :, : 1 + own]
        foreign = score_BCR[row, :, 1 + own : 1 + own + most_foreign]
        found[row, :, 1 + most_own : 1 + most_own + foreign.shape[1]] = foreign
    return found


def _kind(rationale: Rationale) -> tuple[str, str]:
    return rationale.worker, rationale.depth
