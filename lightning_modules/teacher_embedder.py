"""TeacherEmbedder: a stronger embedder says once what it thinks of every pair."""

from __future__ import annotations

from typing import Any, final

import numpy as np
from lightning.pytorch import LightningModule
from typing_extensions import override

from mmemb.backbones import Backbone
from mmemb.batches import PairRowBatch, SidecarOutput, SidecarRow


@final
class TeacherEmbedder(LightningModule):
    """predict: `teacher/`, for every pair the fp16 vectors `query.npy` and `target.npy`.

    Args:
        backbone: the teacher; its width need not be the student's.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    @override
    def predict_step(
        self, batch: PairRowBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> SidecarOutput:
        sides = {
            "query.npy": [pair.query for pair in batch.pairs],
            "target.npy": [pair.target for pair in batch.pairs],
        }
        vectors = {
            name: self.backbone(found).cpu().numpy().astype(np.float16)
            for name, found in sides.items()
        }
        rows: list[dict[str, Any]] = [
            {name: vector_BE[number] for name, vector_BE in vectors.items()}
            for number in range(len(batch.pairs))
        ]
        keyed = zip(batch.pairs, rows, strict=True)
        return SidecarOutput(batch.shard, tuple(SidecarRow(p.key, row) for p, row in keyed))
