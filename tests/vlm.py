"""Tiny vision-language models for tests, pictures, and a model that babbles in few letters."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch

from datamodules.prepare.tiny_vlm import ARCHITECTURES, TAGS, write_tiny_vlm
from mmemb.backbones import PromptStyle, VisionLanguageBackbone
from mmemb.records import Media, Rationale, Side


def picture(seed: int, kind: str = "image", height: int = 40, width: int = 56) -> Media:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (3, height, width), dtype=torch.uint8, generator=generator)
    return Media(kind, f"vlm-{seed}", pixels)  # type: ignore[arg-type]


CLIP = tuple(picture(n, "frame", 32, 32) for n in range(10, 15))
SIDES = [
    Side("hello there"),
    Side("what is it?", "Find it.", (picture(1),)),
    Side("two", media=(picture(2), picture(3, height=64, width=32))),
    Side("which clip?", media=CLIP),
    Side(media=(picture(4), *CLIP[:3])),
]


def note(text: str) -> Rationale:
    return Rationale(text, "self", "tiny", "", "", "", seed=0, num_tokens=9)


NOTE = note("<think>a red flag</think><answer>Peru</answer>")


ON_EACH = [
    pytest.param(name, marks=() if name == "qwen3_vl" else pytest.mark.slow)
    for name in sorted(ARCHITECTURES)
]
"""All architectures; the default suite takes one of them."""


@cache
def folder(architecture: str) -> Path:
    """Written once per process."""
    return write_tiny_vlm(Path(mkdtemp(prefix="vlm-")) / architecture, architecture)


def looking(architecture: str) -> VisionLanguageBackbone:
    """With a system turn."""
    return VisionLanguageBackbone(str(folder(architecture)), PromptStyle(system="Look."))


def qwen(**settings: Any) -> VisionLanguageBackbone:
    """Qwen3-VL."""
    return VisionLanguageBackbone(str(folder("qwen3_vl")), **settings)


def babbling(architecture: str, **settings: object) -> VisionLanguageBackbone:
    """Writes few letters, tags and ends: rationales of unequal lengths, whole and broken ones."""
    backbone = looking(architecture)
    tokenizer = backbone.prompts.tokenizer
    said = [*tokenizer.encode("abcdefgh", add_special_tokens=False)]
    said += [tokenizer.convert_tokens_to_ids(token) for token in (*TAGS[1:], "<|im_end|>")]
    head = backbone.model.get_output_embeddings()
    loud_V1 = torch.zeros(head.weight.shape[0], 1)
    loud_V1[said] = 1.5
    with torch.no_grad():
        head.weight.mul_(loud_V1)
    for name, value in settings.items():
        setattr(backbone, name, value)
    return backbone
