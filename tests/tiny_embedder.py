"""Embedders with a few thousand random parameters, and their retrieval on the tiny data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from callbacks import InvocationRatio, RecallAtK
from datamodules import EvaluationDataModule
from lightning_modules import ContrastiveEmbedder
from mmemb.backbones import Backbone, JointEncoder, OpenClipBackbone
from tests.tiny_models import CLIP_TINY, write_text_encoder
from tests.tiny_trainer import trainer_of


def clip(folder: Path) -> Backbone:
    torch.manual_seed(0)
    return OpenClipBackbone(str(CLIP_TINY), tokenizer="bytes")


def joint(folder: Path) -> Backbone:
    torch.manual_seed(0)
    return JointEncoder(str(write_text_encoder(folder / "bert")), feature_dim=8, thumbnail_dim=0)


BACKBONES = {"clip": clip, "joint": joint}


def evaluate(
    folder: Path, root: Path, world: int, backbone: Backbone, reason: bool, **data: Any
) -> dict[str, float]:
    trainer = trainer_of(folder, world, callbacks=[RecallAtK(), InvocationRatio()])
    trainer.test(
        ContrastiveEmbedder(backbone, reason=reason),
        datamodule=EvaluationDataModule(str(root), batch_size=5, parts=["test"], **data),
        verbose=False,
    )
    return {name: float(value) for name, value in trainer.callback_metrics.items()}
