"""HardNegativeMiner: the wrong candidates that a trained embedder ranks highest."""

from __future__ import annotations

from typing import final

from lightning.pytorch import LightningModule
from typing_extensions import override

from mmemb.backbones import Backbone
from mmemb.records.batches import RankingBatch
from mmemb.records.outputs import SidecarOutput, StepOutput
from mmemb.retrieval.galleries import GalleryCollector, embed_candidates
from mmemb.retrieval.hard_negatives import negative_rows


@final
class HardNegativeMiner(LightningModule):
    """predict: `negatives/`, for every pair the hardest candidates of its gallery.

    Args:
        backbone: the embedder that ranks.
        num_negatives: candidates that are written for a pair at most.
        margin: a candidate whose cosine with the query exceeds the target's by more than this is
            left out, since it may be right, too; null = none is.

    Raises:
        ValueError: `num_negatives` is below 1.
    """

    def __init__(
        self, backbone: Backbone, num_negatives: int = 10, margin: float | None = 0.0
    ) -> None:
        super().__init__()
        if num_negatives < 1:
            raise ValueError(f"num_negatives {num_negatives}: expected 1 or more.")
        self.backbone, self.num_negatives, self.margin = backbone, num_negatives, margin
        self._candidates = GalleryCollector()

    @override
    def predict_step(
        self, batch: RankingBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> StepOutput:
        # Every rank embeds all candidates, so that none waits for another.
        if batch.candidates is not None:
            self._candidates.add(embed_candidates(self.backbone, batch.candidates))
        if batch.pairs is None:
            return StepOutput()

        galleries = self._candidates.galleries()
        rows = negative_rows(self.backbone, batch.pairs, galleries, self.num_negatives, self.margin)
        return StepOutput(sidecar=SidecarOutput(batch.pairs.shard, tuple(rows)))
