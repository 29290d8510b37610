"""Whose rationale one is ranked among: donors of the same task, worker and depth (METHOD 5).

Shapes: B pairs, K own rationales, J donors' ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmemb.records import Pair, Rationale, stable_hash


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


def _kind(rationale: Rationale) -> tuple[str, str]:
    return rationale.worker, rationale.depth
