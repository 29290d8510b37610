"""FeatureExtractor: features of every picture by a frozen tower, so that training reads none."""

from __future__ import annotations

from typing import final

import torch
from lightning.pytorch import LightningModule
from torch import nn
from typing_extensions import override

from mmemb.records.batches import MediaBatch
from mmemb.records.outputs import SidecarOutput, SidecarRow, StepOutput


@final
class FeatureExtractor(LightningModule):
    """predict: `features/`, one fp16 array (T, F) per distinct picture, keyed by its SHA-256.

    Args:
        tower: maps a list of uint8 (3, H, W) pictures to tokens (B, T, F).
    """

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    @override
    def predict_step(
        self, batch: MediaBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> StepOutput:
        tokens_BTF = self.tower([media.pixels for media in batch.media])
        # Half precision: the cache is read in every epoch, and its size is what counts.
        arrays = tokens_BTF.to("cpu", torch.float16).numpy()

        rows = [
            SidecarRow(media.digest, {"npy": array})
            for media, array in zip(batch.media, arrays, strict=True)
        ]
        return StepOutput(sidecar=SidecarOutput(batch.shard, tuple(rows)))
