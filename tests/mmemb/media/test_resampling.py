"""Resized pictures against the plain definition, and what the extreme ones cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils._python_dispatch import TorchDispatchMode

from experiments.scoring.near_duplicates import looks
from mmemb.backbones.pixels import prepare_pixels
from mmemb.llm.prompts.pictures import pixels_of
from mmemb.media.resampling import resample
from mmemb.records.inputs import Media
from tests.fixtures.tiny_backbones import tower

SEEDS = st.integers(0, 2**32 - 1)
MODES = st.sampled_from(["bilinear", "bicubic"])
FEW = settings(max_examples=40)
SETTINGS = {
    "size": 224, "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic",
    "resize_mode": "shortest", "fill_color": 0,
}  # fmt: skip


class Allocations(TorchDispatchMode):
    """Notes the largest memory behind a tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            self.largest = max(self.largest, made.untyped_storage().nbytes())
        return made


def noise(height: int, width: int, seed: int = 0) -> Tensor:
    values = np.random.default_rng(seed).integers(0, 256, (3, height, width), np.uint8)
    return torch.from_numpy(values)


def flat(height: int, width: int) -> Tensor:
    """A picture of one colour that takes no memory."""
    return torch.full((3, 1, 1), 200, dtype=torch.uint8).expand(3, height, width)


def weights(length: int, resized: int, mode: str) -> np.ndarray:
    """The filter as a dense matrix (resized, length)."""
    scale = length / resized
    stretch = max(scale, 1)
    centre = (np.arange(resized)[:, None] + 0.5) * scale
    x = np.abs(np.arange(length) + 0.5 - centre) / stretch
    if mode == "bilinear":
        value = np.maximum(1 - x, 0)
    else:
        near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        value = np.where(x < 1, near, np.where(x < 2, far, 0))
    return value / value.sum(1, keepdims=True)


def plainly(image_CHW: Tensor, size: tuple[int, int], mode: str) -> np.ndarray:
    down, across = (weights(n, m, mode) for n, m in zip(image_CHW.shape[1:], size, strict=True))
    return down @ image_CHW.numpy().astype(float) @ across.T


SIDES = st.one_of(st.integers(1, 12), st.integers(1, 90))
RESIZED = st.one_of(st.integers(1, 40), st.integers(1, 400))


@FEW
@given(SIDES, SIDES, RESIZED, RESIZED, MODES, SEEDS, st.data())
def test_a_window_is_that_of_the_whole(
    height: int, width: int, rows: int, columns: int, mode: str, seed: int, data: st.DataObject
) -> None:
    window = []
    for length in (rows, columns):
        count = data.draw(st.integers(1, length))
        window.append((data.draw(st.integers(0, length - count)), count))
    image = noise(height, width, seed)
    (top, high), (left, wide) = window
    found = resample(image, (rows, columns), (window[0], window[1]), mode)
    expected = plainly(image, (rows, columns), mode)[:, top : top + high, left : left + wide]
    assert found.shape == expected.shape
    assert np.abs(found.numpy() - expected).max() < 5e-3


@FEW
@given(SIDES, SIDES, st.integers(2, 100), st.integers(2, 100), MODES, SEEDS)
def test_usual_pictures_are_resized_as_torch_does(
    height: int, width: int, rows: int, columns: int, mode: str, seed: int
) -> None:
    image, size = noise(height, width, seed), (rows, columns)
    found = resample(image, size, mode=mode)
    torchs = interpolate(image[None].float(), size, mode=mode, antialias=True)[0]
    if height * columns <= max(height * width, 4 * rows * columns):
        assert torch.equal(found, torchs)
    else:
        torch.testing.assert_close(found, torchs, atol=5e-3, rtol=0)


def test_large_pictures_are_resized_in_parts_to_the_same_bits() -> None:
    image = noise(700, 600)
    torchs = interpolate(image[None].float(), (128, 128), mode="bilinear", antialias=True)[0]
    with Allocations() as seen:
        found = resample(image, (128, 128))
    assert torch.equal(found, torchs)
    assert seen.largest < image.numel() * 2, "of uint8; as floats they are four times as many"


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [(1, 3000), (2, 20_000), (20_000, 2)])
def test_extreme_pictures_cost_what_is_kept(mode: str, size: tuple[int, int]) -> None:
    """Resized whole, those of 2 x 20,000 pixels would be 6 GB."""
    with Allocations() as seen:
        square = prepare_pixels(flat(*size), SETTINGS | {"resize_mode": mode})
    assert square.shape == (3, 224, 224)
    assert seen.largest < 8e6
    if mode != "longest":
        assert (square - (200 / 127.5 - 1)).abs().max() < 1e-4


@pytest.mark.parametrize("size", [(10**5, 1), (1, 10**5)])
def test_extreme_pictures_of_other_readers(size: tuple[int, int]) -> None:
    with Allocations() as seen:
        looks(flat(*size))
        bent = pixels_of(Media("image", "x", flat(*size)))
    assert max(bent.shape[1:]) <= 180 * min(bent.shape[1:])
    assert seen.largest < 6e6


def test_a_tower_never_holds_all_pictures_as_floats(tmp_path: Path) -> None:
    frozen, images = tower(tmp_path), [flat(600, 500)] * 6 + [flat(10**5, 1), flat(1, 10**5)]
    with Allocations() as seen:
        tokens = frozen(images)
    assert seen.largest < 600 * 500 * 3 * 4 * 2
    torch.testing.assert_close(tokens[:1], frozen(images[:1]))


@FEW
@given(SEEDS, st.integers(1, 60), st.integers(1, 60), st.sampled_from(["shortest", "longest"]))
def test_pixels_are_those_of_resizing_and_then_cutting(
    seed: int, height: int, width: int, mode: str
) -> None:
    """Up to sides of 1 to 60, where a picture is still resized whole by the definition."""
    image, goal = noise(height, width, seed), 16
    scale = (max if mode == "shortest" else min)(goal / height, goal / width)
    if mode == "shortest":
        size = (int(height * scale + 1e-6), int(width * scale + 1e-6))
    else:
        size = (max(round(height * scale), 1), max(round(width * scale), 1))
    whole = plainly(image, size, "bicubic").clip(0, 255) / 255
    top, left = (round(max(length - goal, 0) / 2) for length in size)
    cut = whole[:, top : top + goal, left : left + goal]
    lacks = [goal - length for length in cut.shape[1:]]
    expected = np.pad(cut, ((0, 0), *((lack // 2, lack - lack // 2) for lack in lacks)))

    said = SETTINGS | {"size": goal, "resize_mode": mode, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    found = prepare_pixels(image, said)
    assert np.abs(found.numpy() - expected).max() < 1e-4
