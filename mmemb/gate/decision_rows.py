"""Rows of the sidecar `decisions/`."""

from __future__ import annotations

from torch import Tensor

from mmemb.records.batches import DepthValueBatch
from mmemb.records.outputs import SidecarRow


def decision_rows(logit_BA: Tensor, depths_B: Tensor, batch: DepthValueBatch) -> list[SidecarRow]:
    """Returns the rows of B queries: depth taken, probability of thinking, logits, cost."""
    cost_B = batch.cost_BA.gather(1, depths_B[:, None])[:, 0]
    thinks_B = 1 - logit_BA.softmax(1)[:, 0]

    # Rounded: further digits depend on the batch that the logits were computed in.
    return [
        SidecarRow(
            key,
            {
                "json": {
                    "depth": int(depths_B[row]),
                    "probability": round(float(thinks_B[row]), 6),
                    "logits": [round(value, 6) for value in logit_BA[row].tolist()],
                    "cost": float(cost_B[row]),
                }
            },
            batch.metas[row],
        )
        for row, key in enumerate(batch.keys)
    ]
