"""Backbones with a few thousand random parameters, and pictures for them to look at."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from mmemb.backbones import Backbone, EfficientNetTower, JointEncoder, OpenClipBackbone
from mmemb.records import Media, Rationale
from tests.tiny_models import CLIP_TINY, write_text_encoder, write_tower

CONFIGS = Path(__file__).parents[1] / "experiments" / "configs" / "backbone"
TINY = str(CLIP_TINY)
WORDS = ["paris", "is", "the", "capital", "of", "france", "flag", "which", "country", "find"]
WORDS += ["a", "picture", "long", "so", "on"]


def rationale(text: str) -> Rationale:
    return Rationale(text, "table", "facts", "1", "none", "none", seed=0, num_tokens=9)


HELPFUL = rationale("<think>paris is the capital of france</think><answer>france</answer>")


def pixels(seed: int, height: int = 24, width: int = 40) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (3, height, width), dtype=torch.uint8, generator=generator)


def picture(seed: int, kind: str = "image") -> Media:
    return Media(kind, f"pixels-{seed}", pixels=pixels(seed, 24 + seed % 2))


def cached_picture(seed: int, kind: str = "image") -> Media:
    generator = torch.Generator().manual_seed(seed)
    return Media(kind, f"features-{seed}", features=torch.rand(3, 24, generator=generator).half())


def text_model(folder: Path) -> str:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return str(write_text_encoder(folder, WORDS, max_position_embeddings=96, **sizes))


def tower(folder: Path) -> EfficientNetTower:
    return EfficientNetTower(str(write_tower(folder) / "lite0.pth"), image_size=32)


def build_clip(folder: Path) -> Backbone:
    torch.manual_seed(3)
    return OpenClipBackbone(TINY, tokenizer="bytes")


def build_joint(folder: Path) -> Backbone:
    torch.manual_seed(1)
    return JointEncoder(text_model(folder / "bert"), feature_dim=24, thumbnail_dim=12)


def build_joint_with_tower(folder: Path) -> Backbone:
    torch.manual_seed(2)
    return JointEncoder(text_model(folder / "bert"), tower=tower(folder))


BUILDERS = {"clip": build_clip, "joint": build_joint, "joint-tower": build_joint_with_tower}


def unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x, dim=-1)
