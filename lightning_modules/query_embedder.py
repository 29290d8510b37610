"""QueryEmbedder: vectors of evaluation queries, directly and after their first rationale."""

from __future__ import annotations

from typing import final

from lightning.pytorch import LightningModule
from typing_extensions import override

from mmemb.backbones import Backbone
from mmemb.records.batches import RankingBatch
from mmemb.records.outputs import SidecarOutput, StepOutput
from mmemb.retrieval.depth_values import embedding_rows


@final
class QueryEmbedder(LightningModule):
    """predict: for every query the unit vector `direct.npy`, and `reasoned.npy` where it has a
    rationale; read by nothing else in this project.

    Args:
        backbone: the embedder.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    @override
    def predict_step(
        self, batch: RankingBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> StepOutput:
        # The data module yields candidates, too, which have no part in this stage.
        if batch.queries is None:
            return StepOutput()
        rows = embedding_rows(self.backbone, batch.queries)
        return StepOutput(sidecar=SidecarOutput(batch.queries.shard, tuple(rows)))
