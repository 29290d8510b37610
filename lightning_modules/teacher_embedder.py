"""TeacherEmbedder: vectors of all pairs by a stronger embedder, written once."""

from __future__ import annotations

from typing import final

import numpy as np
from lightning.pytorch import LightningModule
from typing_extensions import override

from mmemb.backbones import Backbone
from mmemb.records.batches import PairRowBatch
from mmemb.records.outputs import SidecarOutput, SidecarRow, StepOutput


@final
class TeacherEmbedder(LightningModule):
    """predict: `teacher/`, for every pair the fp16 vectors `query.npy` and `target.npy`;
    a pair that could not be read has none, and a mark.

    Args:
        backbone: the teacher; its width need not be the student's.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    @override
    def predict_step(
        self, batch: PairRowBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> StepOutput:
        # A broken pair is not embedded; it gets a marked row, since a sidecar has every key.
        pairs = batch.readable
        sides = {
            "query.npy": [pair.query for pair in pairs],
            "target.npy": [pair.target for pair in pairs],
        }
        vectors = {
            name: self.backbone(of_pairs).cpu().numpy().astype(np.float16)
            for name, of_pairs in sides.items()
            if of_pairs
        }

        rows = [
            SidecarRow(pair.key, {name: vector_BE[row] for name, vector_BE in vectors.items()})
            for row, pair in enumerate(pairs)
        ]
        return StepOutput(sidecar=SidecarOutput(batch.shard, batch.with_failed(rows, empty=None)))
