"""Pictures as the processors of vision-language models can take them.

Shapes: T frames, H height, W width.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmemb.media.resampling import resample
from mmemb.records.inputs import Media

_MOST_RATIO = {"image": 200, "frame": 180}
"""Largest ratio of the sides: processors refuse more than 200, those of clips after rounding."""
_BENT_RATIO = 180


def pixels_of(media: Media) -> Tensor:
    """Pixels of a picture, uint8 (3, H, W).

    A picture that is too thin for processors is bent at equal area until it passes: 1000 x 2 pixels
    become 600 x 4. All others stay as they are.

    Raises:
        ValueError: the picture has no pixels.
    """
    if media.pixels is None:
        raise ValueError(
            f"picture {media.digest} has no pixels, which a vision-language model reads: leave out "
            "`features` of the data, or set decode: true."
        )

    height, width = media.pixels.shape[1:]
    if not height or not width:
        raise ValueError(
            f"picture {media.digest} is empty: {width} x {height} pixels. Leave its sample out, or "
            "prepare the data again from the original picture."
        )

    is_thin = max(height, width) > _MOST_RATIO[media.kind] * min(height, width)
    return _bent(media.pixels) if is_thin else media.pixels


def clip_of(frames: Sequence[Tensor], least: int) -> Tensor:
    """One clip (T, 3, H, W) of frames, all of which are brought to the size of the first.

    Args:
        frames: one or more, (3, H, W) each.
        least: of fewer frames the last one is repeated; some processors refuse a still picture.
    """
    size = frames[0].shape[1:]

    equal = [frame if frame.shape[1:] == size else _resized(frame, size) for frame in frames]

    # The last frame again, and not an empty one: a still picture stays a still clip.
    return torch.stack([*equal, *equal[-1:] * (least - len(equal))])


def bounds_whole_clips(processor: Any) -> bool:
    """Tells whether a video processor's `longest_edge` bounds the pixels of all frames together.

    It does in the third generation of Qwen; before it, the bound is for each frame.
    """
    resize = getattr(sys.modules[type(processor).__module__], "smart_resize", None)
    return resize is None or "num_frames" in inspect.signature(resize).parameters


def _bent(pixels: Tensor) -> Tensor:
    height, width = pixels.shape[1:]

    # The area is kept, and `short` is rounded up, so that the ratio stays within the bound.
    long = math.isqrt(_BENT_RATIO * height * width)
    short = -(-long // _BENT_RATIO)
    return _resized(pixels, (long, short) if height > width else (short, long))


def _resized(pixels: Tensor, size: Sequence[int]) -> Tensor:
    return resample(pixels, tuple(size)).round().clamp(0, 255).to(torch.uint8)
