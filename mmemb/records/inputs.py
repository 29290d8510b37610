"""One side of a pair: an instruction, a text and media."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from mmemb.records.hashing import stable_hash

TOKENS_PER_PICTURE = 64
"""Tokens of a picture where they are only estimated, to balance batches and to cut them."""


@dataclass(frozen=True, slots=True)
class Media:
    """One picture: an image of its own, or one frame of the side's video.

    Attributes:
        kind: `image` or `frame`; the frames of a side are one video, in order.
        digest: SHA-256 (hex) of the encoded bytes, the key of its cached features. Of pixels that
            came without a file it is a hash of shape and values, which differs from the one that
            the same picture has as a file.
        pixels: uint8 (3, H, W), or None where only features were loaded.
        features: (T, F) tokens of a frozen tower from `features/`, or None.
    """

    kind: Literal["image", "frame"]
    digest: str
    pixels: Tensor | None = None
    features: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a pair: any mix of text, images and video frames, plus an instruction."""

    text: str = ""
    instruction: str = ""
    media: tuple[Media, ...] = ()

    @property
    def modalities(self) -> frozenset[str]:
        """The subset of {"text", "image", "video"} that this side holds."""
        names = {"text"} if self.text else set()
        names |= {"image" if m.kind == "image" else "video" for m in self.media}
        return frozenset(names)

    @property
    def num_tokens(self) -> int:
        """Estimates the tokens that a model reads, by which batches are balanced and cut. It is not
        the count of any tokenizer: four letters are one token, a picture is 64."""
        letters = len(self.instruction) + len(self.text)
        return 1 + letters // 4 + TOKENS_PER_PICTURE * len(self.media)

    @property
    def digest(self) -> str:
        """Content hash (16 hex digits): equal content is equal wherever it comes from."""
        # Pictures count by the hash of their bytes: the digest needs no pixels.
        parts = (self.instruction, self.text, *(f"{m.kind}:{m.digest}" for m in self.media))
        return f"{stable_hash(*parts, bits=64):016x}"
