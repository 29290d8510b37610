"""From stored pictures to the square that an image tower expects, on tensors alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mmemb.media.resampling import Window, resample


def prepare_pixels(image: Tensor, settings: Mapping[str, Any]) -> Tensor:
    """Resizes and normalises a uint8 (3, H, W) picture to float (3, S, S).

    What `shortest` cuts away is not resized, so that a picture of 1 x 3000 pixels costs no more
    than others.

    Args:
        image: the picture.
        settings: open_clip's preprocessing: `size`, `mean`, `std`, `interpolation` and
            `resize_mode`: `shortest` resizes the shorter side to S and cuts the centre out,
            `longest` resizes the longer side to S and pads, `squash` ignores the aspect.
    """
    size = settings["size"]
    target = (size, size) if isinstance(size, int) else tuple(size)
    height, width = _resized_shape(tuple(image.shape[-2:]), target, settings["resize_mode"])

    kept = (_kept(height, target[0]), _kept(width, target[1]))
    resized = resample(image, (height, width), kept, settings["interpolation"])
    square = _padded(resized.clamp(0, 255) / 255.0, target, float(settings["fill_color"]) / 255.0)

    mean = torch.tensor(settings["mean"], device=image.device)[:, None, None]
    std = torch.tensor(settings["std"], device=image.device)[:, None, None]
    return (square - mean) / std


def _resized_shape(shape: tuple[int, int], target: tuple[int, int], mode: str) -> tuple[int, int]:
    if mode == "squash":
        return target

    ratios = (target[0] / shape[0], target[1] / shape[1])
    if mode == "shortest":
        scale = max(ratios)  # truncated, as torchvision does; the offset is for exact products
        return int(shape[0] * scale + 1e-6), int(shape[1] * scale + 1e-6)

    scale = min(ratios)
    return max(round(shape[0] * scale), 1), max(round(shape[1] * scale), 1)


def _kept(length: int, goal: int) -> Window:
    """The middle of a side that is longer than its goal."""
    return (round(max(length - goal, 0) / 2), min(length, goal))


def _padded(image: Tensor, target: tuple[int, int], fill: float) -> Tensor:
    """Pads both sides alike, to the target's height and width."""
    lacks = [goal - length for goal, length in zip(target, image.shape[-2:], strict=True)]
    top, left = (lack // 2 for lack in lacks)
    return functional.pad(image, (left, lacks[1] - left, top, lacks[0] - top), value=fill)
