"""Pictures resized without aliasing; work and memory follow what is kept of them.

Shapes: C channels, H height, W width, n lines of pixels, N kept pixels of a line, K pixels that the
filter reaches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import interpolate

Window = tuple[int, int]
"""Start and length of what is kept of a resized side."""

_CHUNK = 2**18
"""Numbers that are resized together; so many stay in a cache of the processor."""

_MOST_WASTE = 4
"""A side whose resized length is at most so many times what is kept of it is resized whole."""

_MOST_SHRINKING = 64
"""Most that torch shrinks a side on a GPU: a wider filter does not fit into its shared memory."""


def resample(
    image_CHW: Tensor,
    size: tuple[int, int],
    window: tuple[Window, Window] | None = None,
    mode: str = "bilinear",
    as_float: Callable[[Tensor], Tensor] = Tensor.float,
) -> Tensor:
    """Resizes a picture as torch's `interpolate` with `antialias`, and keeps a window of it.

    Of usual pictures the numbers are torch's to the bit. If most of the resized picture would be
    thrown away, the window alone is computed; if width grows by much while height shrinks, height
    comes first: both differ from torch by rounding alone. Between the two sides stand no more
    numbers than the picture has, or four times those of the window.

    Args:
        image_CHW: of any type.
        size: height and width after resizing.
        window: of height and width; None keeps everything.
        mode: the filter, `bilinear` or `bicubic`.
        as_float: makes floats of some lines (n, W) of the picture.

    Returns:
        Floats (C, height of the window, width of the window).
    """
    rows, columns = window or ((0, size[0]), (0, size[1]))
    _, height, width = image_CHW.shape
    torch_can = size[0] > 1 and columns[1] > 1  # 2.14 is wrong where the result has one column
    down = _Side(height, size[0], rows, mode, image_CHW.device, torch_can)
    across = _Side(width, size[1], columns, mode, image_CHW.device, size[1] > 1)
    image_CHW = image_CHW[:, down.first : down.last, across.first : across.last]

    between = image_CHW.shape[1] * columns[1]
    if between > max(image_CHW[0].numel(), _MOST_WASTE * rows[1] * columns[1]):
        high_CWN = down.resize(image_CHW.transpose(1, 2), as_float)
        return across.resize(high_CWN.transpose(1, 2))

    wide_CHN = across.resize(image_CHW, as_float)
    if not down.is_whole:
        return down.resize(wide_CHN.transpose(1, 2)).transpose(1, 2)
    resized = interpolate(wide_CHN[None], (size[0], columns[1]), mode=mode, antialias=True)[0]
    return resized.narrow(1, *rows)


@final
class _Side:
    """Resizes one side of a picture.

    Args:
        length: before.
        resized: after.
        window: what is kept.
        mode: the filter.
        device: of the picture.
        torch_can: whether torch's own function is right for it.

    Attributes:
        is_whole: whether torch resizes all of it, of which the window is then cut out.
        first: pixel that is needed.
        last: pixel that is needed, plus one.
    """

    def __init__(
        self,
        length: int,
        resized: int,
        window: Window,
        mode: str,
        device: torch.device,
        torch_can: bool,
    ) -> None:
        self._resized, self._window, self._mode = resized, window, mode
        fits = device.type == "cpu" or length <= _MOST_SHRINKING * resized
        self.is_whole = torch_can and fits and resized <= _MOST_WASTE * window[1]
        self.first, self.last = 0, length
        if self.is_whole:
            return

        place_NK, weight_NK = _taps(length, resized, window, mode)
        self.first, self.last = int(place_NK.min()), int(place_NK.max()) + 1
        self._place_NK = (place_NK - self.first).to(device)
        self._weight_NK = weight_NK.to(device)

    def resize(
        self, image_CHW: Tensor, as_float: Callable[[Tensor], Tensor] = Tensor.float
    ) -> Tensor:
        """Resizes the lines of a picture from `first` to `last`: floats (C, H, N)."""
        line_nW = image_CHW.flatten(0, 1)
        work = line_nW.shape[1] if self.is_whole else self._place_NK.numel()
        chunks = line_nW.split(max(1, _CHUNK // work))
        return torch.cat([self._of_lines(as_float(chunk)) for chunk in chunks]).unflatten(
            0, image_CHW.shape[:2]
        )

    def _of_lines(self, line_nW: Tensor) -> Tensor:
        if not self.is_whole:
            return (line_nW[:, self._place_NK] * self._weight_NK).sum(-1)
        size = (len(line_nW), self._resized)
        wide = interpolate(line_nW[None, None], size, mode=self._mode, antialias=True)[0, 0]
        return wide.narrow(1, *self._window)


def _taps(length: int, resized: int, window: Window, mode: str) -> tuple[Tensor, Tensor]:
    """Pixels (N, K) that each kept pixel is made of, and their weights, as torch has them."""
    start, count = window
    scale = length / resized
    radius = {"bilinear": 1, "bicubic": 2}[mode] * max(scale, 1.0)

    centre_N1 = (torch.arange(start, start + count, dtype=torch.float64)[:, None] + 0.5) * scale
    reached_K = torch.arange(math.ceil(2 * radius) + 1)
    place_NK = (centre_N1 - radius + 0.5).long().clamp(min=0) + reached_K
    inside_NK = place_NK < length

    # The filter gets wider where the picture gets smaller; at the border the rest counts more.
    distance_NK = (place_NK + 0.5 - centre_N1).abs() / max(scale, 1.0)
    weight_NK = _FILTERS[mode](distance_NK) * inside_NK
    weight_NK = weight_NK / weight_NK.sum(-1, keepdim=True)
    return place_NK.clamp(max=length - 1), weight_NK.float()


def _triangle(distance: Tensor) -> Tensor:
    return (1 - distance).clamp(min=0)


def _cubic(distance: Tensor) -> Tensor:
    """Keys' filter with a = -0.5, as Pillow and torch have it with `antialias`."""
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))


_FILTERS = {"bilinear": _triangle, "bicubic": _cubic}
