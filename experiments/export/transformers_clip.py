"""A CLIP of open_clip as a `CLIPModel` of transformers, where all its parts are there.

Shapes: T texts, P pictures, D embedding width.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from experiments.export.clip_check import ClipProbes, compare_clip, embed_probes
from experiments.export.clip_texts import (
    TOKENIZING,
    check_tokenizer,
    fusion,
    transformers_tokenizer,
)
from mmemb.backbones import OpenClipBackbone
from mmemb.storage.pretrained import load_pretrained
from mmemb.storage.tensor_files import load_whole, quiet_loading

_SIZES = {
    "vision_cfg": {"layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size"},
    "text_cfg": {"layers", "width", "heads", "mlp_ratio", "vocab_size", "context_length"},
}
"""Settings of open_clip's towers that only say how large something is."""

_UNUSED = {"patch_dropout", "tokenizer_kwargs", "tokenizer_mode", "hf_tokenizer_name"}
"""Settings that change no vector of the model itself."""

_CROPS = {"shortest": True, "squash": False}
"""How open_clip makes a square -> whether the centre is cut out."""

_FILTERS = {"bilinear": 2, "bicubic": 3}
"""Pillow's numbers."""

_NAMES = (
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^visual\.proj$", "visual_projection.weight"),
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^text_projection$", "text_projection.weight"),
    (r"\.ln_1\.", ".layer_norm1."),
    (r"\.ln_2\.", ".layer_norm2."),
    (r"\.attn\.", ".self_attn."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
"""Parts of open_clip's names -> those of transformers."""

CROPPING = (
    "transformers cuts the centre of a picture with an odd margin one pixel further to the left "
    "or top than open_clip and this project do."
)


def write_transformers_clip(backbone: OpenClipBackbone, source: Path, out: Path) -> list[str]:
    """Writes model, tokenizer and image processor, and compares their vectors with the backbone's.

    Args:
        backbone: in float32.
        source: its folder, for messages.
        out: an empty folder, or a new one.

    Returns:
        Sentences about the folder.

    Raises:
        ValueError: `CLIPModel` lacks a part of the backbone, or the vectors differ.
    """
    from transformers import CLIPConfig, CLIPModel, CLIPProcessor

    check_tokenizer(backbone, source)
    _check_parts(backbone, source)
    image_processor = _image_processor(backbone, source)
    tokenizer, end = transformers_tokenizer(backbone, source)

    model = CLIPModel(CLIPConfig(**_config(backbone, tokenizer, end)))
    # Strictly: no tensor of either side may be left over.
    model.load_state_dict(dict(_weights(backbone.model)), strict=True)
    with quiet_loading():
        model.save_pretrained(out)
    CLIPProcessor(image_processor, tokenizer).save_pretrained(out)
    image_processor.save_pretrained(out)  # the file of older versions of transformers

    notes = compare_clip(out, embed_probes(backbone), _embed)
    is_cropped = _CROPS[backbone.spec["preprocess_cfg"]["resize_mode"]]
    return [TOKENIZING, *notes, *([CROPPING] if is_cropped else []), *fusion(backbone)]


def _check_parts(backbone: OpenClipBackbone, source: Path) -> None:
    """Refuses what `CLIPModel` does not compute.

    Raises:
        ValueError: names the setting.
    """
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    model_cfg = backbone.spec["model_cfg"]
    other = [key for key in ("multimodal_cfg", "custom_text") if model_cfg.get(key)]

    for name, kind in (("vision_cfg", CLIPVisionCfg), ("text_cfg", CLIPTextCfg)):
        usual = {field.name: field.default for field in fields(kind)}
        other += [
            f"{name}.{key}: {value!r}"
            for key, value in model_cfg[name].items()
            if key not in _SIZES[name] | _UNUSED and value != usual.get(key)
        ]

    # The tower of a ResNet has four numbers of layers; a picture may be no square.
    sizes = [model_cfg["vision_cfg"].get(key) for key in ("layers", "image_size", "patch_size")]
    other += [f"vision_cfg: {size!r}" for size in sizes if isinstance(size, list | tuple)]

    if other:
        raise ValueError(
            f"{source} has a part that CLIPModel of transformers lacks ({'; '.join(other)}), so "
            "it is not exported so: try `--to open_clip`."
        )


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields the weights under the names of transformers, in its layout."""
    for name, tensor in model.state_dict().items():
        place = name
        for pattern, replacement in _NAMES:
            place = re.sub(pattern, replacement, place)

        # open_clip multiplies from the left by these two, transformers has linear layers.
        if name in ("visual.proj", "text_projection"):
            tensor = tensor.T

        # One matrix of queries, keys and values there, three layers here.
        if "in_proj_" in place:
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                yield place.replace("in_proj_", f"{part}_proj."), piece
        else:
            yield place, tensor


def _config(backbone: OpenClipBackbone, tokenizer: Any, end: int) -> dict[str, Any]:
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    model_cfg = backbone.spec["model_cfg"]
    vision = CLIPVisionCfg(**model_cfg["vision_cfg"])
    text = CLIPTextCfg(**model_cfg["text_cfg"])

    width = model_cfg["embed_dim"]
    shared = {
        "projection_dim": width,
        "hidden_act": "quick_gelu" if model_cfg.get("quick_gelu") else "gelu",
    }
    marks = {"bos": tokenizer.bos_token_id, "eos": end, "pad": tokenizer.pad_token_id}
    return {
        "projection_dim": width,
        "text_config": shared
        | {f"{name}_token_id": number for name, number in marks.items()}
        | {
            "vocab_size": text.vocab_size,
            "hidden_size": text.width,
            "intermediate_size": int(text.width * text.mlp_ratio),
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "max_position_embeddings": text.context_length,
        },
        "vision_config": shared
        | {
            "hidden_size": vision.width,
            "intermediate_size": int(vision.width * vision.mlp_ratio),
            "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.width // vision.head_width,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
        },
    }


def _image_processor(backbone: OpenClipBackbone, source: Path) -> Any:
    from transformers import CLIPImageProcessor

    settings = backbone.spec["preprocess_cfg"]
    mode, filter_name = settings["resize_mode"], settings["interpolation"]
    if mode not in _CROPS or filter_name not in _FILTERS:
        raise ValueError(
            f"{source} prepares pictures by `{mode}` and `{filter_name}`, which the image "
            "processor of transformers' CLIP does not do, so it is not exported so: try "
            "`--to open_clip`."
        )

    size = settings["size"]
    size = size if isinstance(size, int) else size[0]
    square = {"height": size, "width": size}
    return CLIPImageProcessor(
        size={"shortest_edge": size} if _CROPS[mode] else square,
        crop_size=square,
        do_center_crop=_CROPS[mode],
        resample=_FILTERS[filter_name],
        image_mean=list(settings["mean"]),
        image_std=list(settings["std"]),
    )


def _embed(folder: Path, probes: ClipProbes) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors of the texts, the prepared pixels and the pictures, as transformers makes them."""
    from transformers import CLIPModel, CLIPProcessor

    model = load_whole(CLIPModel, str(folder)).eval()
    processor = load_pretrained(CLIPProcessor, folder)

    texts = processor(text=list(probes.texts), padding=True, truncation=True, return_tensors="pt")
    pictures = processor(images=list(probes.images), return_tensors="pt")
    return (
        model.get_text_features(**texts).pooler_output,
        model.get_image_features(pixel_values=probes.pixels).pooler_output,
        model.get_image_features(**pictures).pooler_output,
    )
