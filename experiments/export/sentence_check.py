"""Are the vectors of an exported folder those of the backbone? Asked of the package that loads it.

Shapes: D embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmemb.backbones import Backbone
from mmemb.media import picture
from mmemb.records.inputs import Side
from mmemb.storage.tensor_files import quiet_loading

TOLERANCE = 1e-5
"""Largest difference between entries of two vectors, computed in float32."""

_TEXTS = ("paris", "Ein weißer Stern, über 3 Streifen?", "the flag of a country far away")
_INSTRUCTION = "Find the flag."


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """One input, and what the backbone makes of it.

    Attributes:
        side: as the backbone reads it.
        given: as sentence-transformers takes it.
        vector_D: the backbone's.
    """

    side: Side
    given: Any
    vector_D: Tensor


def require_package() -> None:
    """Raises FileNotFoundError, with what to install, where sentence-transformers is missing."""
    try:
        import sentence_transformers  # noqa: F401
    except ImportError:
        raise FileNotFoundError(
            "The package sentence-transformers is not installed, and what is exported for it is "
            "compared with the backbone first. Run: pip install -e '.[export]'"
        ) from None


@torch.no_grad()
def embed_probes(backbone: Backbone, longest: int, pictures: bool, square: int = 0) -> list[Probe]:
    """Embeds short texts and a long one, with and without instruction, and pictures.

    Args:
        backbone: what was exported.
        longest: words of the long text.
        pictures: whether the folder reads them.
        square: side of pictures that no rule of a library resizes, shown without a text; 0: any.
    """
    texts = [*_TEXTS, " ".join(["flag"] * longest)]
    sides = [
        (Side(text, instruction), text) for text in texts for instruction in ("", _INSTRUCTION)
    ]

    if square:
        sides += [_pictured(seed, "", (square, square)) for seed in range(2)]
    elif pictures:
        sides += [_pictured(0, ""), _pictured(1, "what is it?")]
    return [Probe(side, plain, backbone.encode([side])[0].cpu()) for side, plain in sides]


def _pictured(seed: int, text: str, shape: tuple[int, int] | None = None) -> tuple[Side, Any]:
    from PIL import Image

    shape = shape or (48, 64 + 8 * seed)
    pixels = np.random.default_rng(seed).integers(256, size=(*shape, 3), dtype=np.uint8)
    plain = {"image": Image.fromarray(pixels)} | ({"text": text} if text else {})
    return Side(text, _INSTRUCTION if text else "", (picture(pixels),)), plain


def compare(folder: Path, probes: Sequence[Probe], separator: str) -> float:
    """Returns the largest difference between the folder's vectors and the backbone's.

    Args:
        folder: what was written.
        probes: of `embed_probes`.
        separator: what a prompt ends with, behind the instruction.

    Raises:
        ValueError: it cannot be loaded, or a vector differs by more than `TOLERANCE`.
    """
    from sentence_transformers import SentenceTransformer

    try:
        with quiet_loading():
            float32 = {"dtype": torch.float32}
            model = SentenceTransformer(
                str(folder),
                device="cpu",
                model_kwargs=float32,
                local_files_only=True,
                trust_remote_code=False,
            )
            vectors = {probe: _encode(model, probe, separator) for probe in probes}
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(
            "sentence-transformers cannot read what was written of this backbone, so nothing is "
            f"exported: {type(error).__name__} {error!s:.300}"
        ) from None

    off = {probe: float((vector - probe.vector_D).abs().max()) for probe, vector in vectors.items()}
    worst = max(off, key=off.__getitem__)

    # `not <=` also refuses NaN, which is neither larger nor smaller.
    if not off[worst] <= TOLERANCE:
        raise ValueError(
            f"The exported vectors would differ from the backbone's, by {off[worst]:.1e} (at most "
            f"{TOLERANCE:.0e}) for the text {worst.side.text[:40]!r} with instruction "
            f"{worst.side.instruction!r} and {len(worst.side.media)} picture(s), so nothing is "
            "exported. Use `mmemb.backbones.load_backbone`."
        )

    return off[worst]


def _encode(model: Any, probe: Probe, separator: str) -> Tensor:
    prompt = probe.side.instruction and probe.side.instruction + separator
    vectors = model.encode(
        [probe.given], prompt=prompt or None, convert_to_tensor=True, show_progress_bar=False
    )
    return vectors[0].float().cpu()  # type: ignore[no-any-return]
