"""Random crops of training pictures: the boxes of torchvision's `RandomResizedCrop`, by seed.

A crop is a pure function of (seed, step, key of the pair, place of the picture), so that a resumed
run, and any number of loader processes and ranks, sees the same pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from mmemb.records.batches import PairBatch
from mmemb.records.hashing import stable_hash
from mmemb.records.inputs import Media, Side

RATIOS = (3 / 4, 4 / 3)
"""Bounds of width / height of a box, as in open_clip's training."""


@final
@dataclass(frozen=True, slots=True)
class RandomCrop:
    """Cuts the pictures of training batches.

    Nothing is resized or mirrored: the backbone prepares a crop as it does a whole picture. The
    frames of a clip have one box.

    Attributes:
        low: least share of a picture's area.
        high: largest share.
        seed: of the draws.
    """

    low: float
    high: float
    seed: int

    @classmethod
    def of(cls, scale: Sequence[float], seed: int) -> RandomCrop:
        """Makes the crop of the setting `random_crop`.

        Raises:
            ValueError: it is not two shares of the area, the smaller one first.
        """
        if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(
                f"random_crop {list(scale)}: expected the least and the largest share of a "
                "picture's area, such as [0.9, 1.0]."
            )
        return cls(scale[0], scale[1], seed)

    def batch(self, batch: PairBatch) -> PairBatch:
        """Returns a batch with cropped pictures; the ids stay those of the whole ones.

        By them the loss knows equal targets, which equal pictures are however they are cut.
        """
        rows = list(enumerate(batch.keys))
        return replace(
            batch,
            queries=tuple(self._side(batch.queries[n], batch.step, key, "q") for n, key in rows),
            targets=tuple(self._side(batch.targets[n], batch.step, key, "t") for n, key in rows),
            negatives=tuple(
                tuple(self._side(s, batch.step, key, f"n{m}") for m, s in enumerate(sides))
                for key, sides in zip(batch.keys, batch.negatives, strict=True)
            )
            if batch.negatives
            else (),
        )

    def _side(self, side: Side, step: int, key: str, role: str) -> Side:
        def cropped(media: Media, place: int) -> Media:
            # Frames of one clip move together.
            drawn = "clip" if media.kind == "frame" else place
            return self._cropped(media, stable_hash(self.seed, "crop", step, key, role, drawn))

        media = tuple(cropped(m, place) for place, m in enumerate(side.media))
        return replace(side, media=media) if media else side

    def _cropped(self, media: Media, seed: int) -> Media:
        if media.pixels is None:
            raise ValueError(
                f"random_crop needs pixels, but picture {media.digest} came without: leave "
                "data.features out, or random_crop."
            )
        top, left, height, width = crop_box(media.pixels, (self.low, self.high), seed)

        # A copy: a view would keep and send the whole picture. What is kept by digest (tokens of a
        # frozen tower) must take no crop for another one.
        pixels = media.pixels[:, top : top + height, left : left + width].clone()
        digest = f"{media.digest}:{top},{left},{height},{width}"
        return replace(media, pixels=pixels, digest=digest)


def crop_box(pixels: Tensor, scale: tuple[float, float], seed: int) -> tuple[int, int, int, int]:
    """Returns top, left, height and width of the box that torchvision draws with a seed.

    Args:
        pixels: (3, H, W).
        scale: least and largest share of the area.
        seed: of the draw; the global random numbers stay as they are.
    """
    from torchvision.transforms import RandomResizedCrop

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return RandomResizedCrop.get_params(pixels, list(scale), list(RATIOS))
