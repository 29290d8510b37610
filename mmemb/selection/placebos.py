"""Placebos: rationales of the same task, writer and depth about other concepts.

See docs/method.md section 5. Shapes: K own rationales of a pair, J donors' ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmemb.records.hashing import stable_hash
from mmemb.records.pairs import Pair
from mmemb.records.rationales import Rationale


def placebo_donors(
    pairs: Sequence[Pair], pools: Sequence[Sequence[Rationale]], row: int, num_placebos: int
) -> list[Rationale]:
    """Rationales about other concepts, drawn by key: `num_placebos` of each writer and depth.

    Args:
        pairs: pairs of a batch.
        pools: their rationales.
        row: the pair that they are for.
        num_placebos: donors for each writer and depth among the pair's own rationales; fewer if
            there are no more.
    """
    pair = pairs[row]

    # The order is a hash of keys: it changes from pair to pair, and never from run to run.
    others = sorted(
        (stable_hash("donor", pair.key, other.key), number)
        for number, other in enumerate(pairs)
        if other.task == pair.task and other.concept != pair.concept
    )

    # By writer and depth, since a rank among texts of another form would measure the form.
    donors: list[Rationale] = []
    for kind in dict.fromkeys(map(_kind, pools[row])):
        of_kind = ([r for r in pools[number] if _kind(r) == kind] for _, number in others)
        donors += [pool[0] for pool in of_kind if pool][:num_placebos]

    return donors


def comparable(pool: Sequence[Rationale], donors: Sequence[Rationale]) -> Tensor:
    """bool (K, J), whether an own rationale and a donor's one are of one writer and depth."""
    alike = [_kind(donor) == _kind(rationale) for rationale in pool for donor in donors]
    return torch.tensor(alike, dtype=torch.bool).reshape(len(pool), len(donors))


def _kind(rationale: Rationale) -> tuple[str, str]:
    return rationale.writer, rationale.depth
