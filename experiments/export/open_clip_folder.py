"""A CLIP as a folder that open_clip loads by `local-dir:`."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor

from experiments.export.clip_check import ClipProbes, compare_clip, embed_probes
from experiments.export.clip_texts import (
    READ_AS_TEXT,
    check_tokenizer,
    fusion,
    keep_special_as_text,
)
from mmemb.backbones import OpenClipBackbone
from mmemb.storage.json_files import write_json

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
"""Names that open_clip looks for."""


def write_open_clip_folder(backbone: OpenClipBackbone, source: Path, out: Path) -> list[str]:
    """Writes the folder, and compares its vectors with those of the backbone.

    Args:
        backbone: in float32.
        source: its folder, for messages.
        out: an empty folder, or a new one.

    Returns:
        Sentences about the folder.

    Raises:
        ValueError: open_clip cannot express a part of the backbone, or the vectors differ.
    """
    from safetensors.torch import save_file

    check_tokenizer(backbone, source)
    spec = copy.deepcopy(backbone.spec)
    text_cfg = spec["model_cfg"]["text_cfg"]

    if text_cfg.get("hf_model_name"):
        raise ValueError(
            f"{source} has a text tower of transformers, whose configuration open_clip takes from "
            "a hub and not from a folder, so it is not exported: load it with "
            "`mmemb.backbones.load_backbone`."
        )

    special = "open_clip takes a text that spells a special token for that token."
    tokenizer = getattr(backbone.tokenizer, "tokenizer", None)
    if tokenizer is not None:
        special = READ_AS_TEXT
        # Of a folder open_clip takes the tokenizer in it, whatever name stands here.
        text_cfg["hf_tokenizer_name"] = text_cfg.get("hf_tokenizer_name") or out.name
        keep_special_as_text(tokenizer)
        tokenizer.save_pretrained(out)

    write_json(out / CONFIG, spec)
    weights = backbone.model.state_dict()
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, out / WEIGHTS)

    notes = compare_clip(out, embed_probes(backbone), _embed)
    return [special, *notes, *fusion(backbone)]


@torch.no_grad()
def _embed(folder: Path, probes: ClipProbes) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors of the texts, the prepared pixels and the pictures, as open_clip makes them."""
    import open_clip

    model, _, prepare = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval()

    pictures = torch.stack([prepare(image) for image in probes.images])
    return (
        model.encode_text(tokenizer(list(probes.texts))),
        model.encode_image(probes.pixels),
        model.encode_image(pictures),
    )
