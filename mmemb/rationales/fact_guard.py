"""Guard of facts: no writer writes about a train fact that it was fitted on.

See docs/method.md section 3. Shapes: W writers, B sides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mmemb.rationales.writers.base import RationaleWriter
from mmemb.records.inputs import Side


def known_train_facts(
    writers: Sequence[RationaleWriter], sides: Sequence[Side], metas: Sequence[Mapping[str, str]]
) -> Tensor:
    """Marks where a writer reads a train side whose fact it was fitted on.

    Sides of other splits never count: no question about them is fitted, and those of mixed tasks
    declare `seen_answer`.

    Args:
        writers: W writers.
        sides: B sides.
        metas: metadata of each side, with its `split` and `fact`.

    Returns:
        bool (W, B).
    """
    knows_WB = torch.zeros(len(writers), len(sides), dtype=torch.bool)

    for w, writer in enumerate(writers):
        facts = writer.trained_facts
        for b, (side, meta) in enumerate(zip(sides, metas, strict=True)):
            is_known = meta["split"] == "train" and meta["fact"] in facts
            knows_WB[w, b] = is_known and writer.can_read(side)
    return knows_WB


def check_unknowing(
    knows_WB: Tensor,
    writers: Sequence[RationaleWriter],
    sides: Sequence[Side],
    metas: Sequence[Mapping[str, str]],
) -> None:
    """Raises ValueError if every writer for a side was fitted on its fact."""
    for b in knows_WB.any(0).nonzero()[:, 0].tolist():
        knows_W = knows_WB[:, b].tolist()
        if not any(w.can_read(sides[b]) for w, k in zip(writers, knows_W, strict=True) if not k):
            raise ValueError(
                f"Every writer that can write about {metas[b]['fact']} was fitted on it: what it "
                "writes would be righter than the prior of the test. Add a writer that was fitted "
                "on the other fold of train concepts, or pass --model.allow_trained_facts true and "
                "read every figure about train rationales with that in mind."
            )
