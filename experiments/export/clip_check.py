"""Are the vectors of an exported CLIP those of the backbone? Asked of the library that loads it.

Shapes: T texts, P pictures, S side of a prepared picture, D embedding width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from experiments.export.sentence_check import TOLERANCE
from mmemb.backbones import OpenClipBackbone
from mmemb.backbones.pixels import prepare_pixels
from mmemb.media import picture
from mmemb.records.inputs import Side
from mmemb.storage.tensor_files import quiet_loading

LEAST_COSINE = 0.999
"""Least cosine of a picture that the other library has resized, by rules of its own."""

_TEXTS = ("paris", "Ein weißer Stern, über 3 Streifen?", "a photo of 2 dogs; they don't run")
_INSTRUCTION = "Find the flag."


@final
@dataclass(frozen=True, slots=True, eq=False)
class ClipProbes:
    """Inputs, and what the backbone makes of them.

    Attributes:
        texts: T of them, the last one too long; half with an instruction in front.
        images: P pictures of Pillow, of different shapes.
        pixels: (P, 3, S, S), the pictures as the backbone prepares them.
        text_TD: the backbone's vectors.
        picture_PD: the backbone's vectors.
    """

    texts: tuple[str, ...]
    images: tuple[Any, ...]
    pixels: Tensor
    text_TD: Tensor
    picture_PD: Tensor


Embed = Callable[[Path, ClipProbes], tuple[Tensor, Tensor, Tensor]]
"""Vectors of the texts, the prepared pixels and the pictures, as another library makes them."""


@torch.no_grad()
def embed_probes(backbone: OpenClipBackbone) -> ClipProbes:
    """Embeds short texts and a long one, and pictures that shrink, grow and lose their sides."""
    long_text = "flag " * (backbone.tokenizer.context_length + 8)
    texts = (*_TEXTS, f"{_INSTRUCTION} {_TEXTS[0]}", long_text.strip())

    settings = backbone.spec["preprocess_cfg"]
    size = settings["size"]
    side = size if isinstance(size, int) else size[0]

    # Wide, tall, a little too large, and small. No margin is odd: libraries round its half in
    # different ways.
    shapes = ((2 * side, 4 * side), (3 * side, side), (2 * side + 1,) * 2, (side // 2,) * 2)
    images = tuple(_image(*shape) for shape in shapes)
    shown = [picture(image) for image in images]
    pixels = torch.stack([prepare_pixels(each.pixels, settings) for each in shown])

    text_TD = backbone.encode([Side(text) for text in texts])
    picture_PD = backbone.encode([Side("", "", (each,)) for each in shown])
    return ClipProbes(texts, images, pixels, text_TD, picture_PD)


def _image(height: int, width: int) -> Any:
    """A picture as smooth as a photograph: noise alone shows only how filters round."""
    from PIL import Image

    noise = np.random.default_rng(height).integers(256, size=(8, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def compare_clip(folder: Path, probes: ClipProbes, embed: Embed) -> list[str]:
    """Compares the vectors of a folder with the backbone's, and says how near they are.

    Args:
        folder: what was written.
        probes: of `embed_probes`.
        embed: loads the folder by the other library.

    Raises:
        ValueError: it cannot be loaded, or its vectors differ.
    """
    try:
        with quiet_loading(), torch.no_grad():
            text_TD, prepared_PD, picture_PD = (
                normalize(vectors.float().cpu(), dim=-1) for vectors in embed(folder, probes)
            )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(
            "The library cannot read what was written of this backbone, so nothing is exported: "
            f"{type(error).__name__} {error!s:.300}"
        ) from None

    differences = {
        "texts": float((text_TD - probes.text_TD).abs().max()),
        "prepared pictures": float((prepared_PD - probes.picture_PD).abs().max()),
    }
    for kind, difference in differences.items():
        # `not <=` also refuses NaN, which is neither larger nor smaller.
        if not difference <= TOLERANCE:
            raise ValueError(
                f"The exported vectors of {kind} would differ from the backbone's, by "
                f"{difference:.1e} (at most {TOLERANCE:.0e}), so nothing is exported. Use "
                "`mmemb.backbones.load_backbone`."
            )

    cosine = float((picture_PD * probes.picture_PD).sum(-1).min())
    if not cosine >= LEAST_COSINE:
        raise ValueError(
            f"The library prepares pictures in another way: a vector has the cosine {cosine:.4f} "
            f"with the backbone's (at least {LEAST_COSINE}), so nothing is exported. Use "
            "`mmemb.backbones.load_backbone`."
        )

    return [
        "Compared with the original when it was exported, in float32: largest difference "
        f"{max(differences.values()):.0e} for texts and for pictures of the right size.",
        "The library resizes pictures on whole grey levels, this project on fractions of them: "
        f"such vectors had a cosine of at least {math.floor(cosine * 1e4) / 1e4:.4f}.",
    ]
