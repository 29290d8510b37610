"""Bytes of a shard into images, arrays and JSON data; nothing else is ever decoded or executed.

Images pass PIL with a whitelist of formats and a bound on their pixels, arrays are `.npy` without
pickles, and no member name is used as a path.
"""

from __future__ import annotations

import io
import json
import math
from typing import Any, Literal, final

import numpy as np
import torch
from numpy.lib import format as npy
from PIL import Image, ImageOps
from torch import Tensor

MAX_PIXELS = 64_000_000
IMAGE_FORMATS = ("WEBP", "PNG", "JPEG")

ADVICE = "Make the folder again, or leave such samples out with `on_error: skip`."

OnError = Literal["raise", "skip"]


@final
class DecodeError(ValueError):
    """A member that cannot be decoded: the one thing that `on_error` is about.

    Attributes:
        problem: names the member and what was expected; the message adds what to do.
    """

    def __init__(self, problem: str, advice: str = "") -> None:
        super().__init__(f"{problem} {advice}".strip())
        self.problem = problem


def decode_image(data: bytes, where: str, longest_side: int | None = None) -> Tensor:
    """An encoded image as uint8 (3, H, W); what is transparent becomes white.

    Args:
        data: a WebP (its first frame), PNG or JPEG file.
        where: names the shard, sample and member in errors.
        longest_side: larger pictures are reduced to it, aspect kept.

    Raises:
        DecodeError: not one of these formats, truncated, or more than `MAX_PIXELS`.
    """
    try:
        with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
            _check_pixels(image)
            rgb = _to_rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # PIL's decoders raise whatever the bytes make them raise
        formats = "/".join(IMAGE_FORMATS)
        raise _undecodable(where, f"a whole {formats} image", error) from None
    if longest_side is not None and max(rgb.size) > longest_side:
        rgb.thumbnail((longest_side, longest_side), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1).contiguous()


def decode_array(data: bytes, where: str) -> Tensor:
    """A `.npy` file as a tensor; a header that promises more than the bytes hold is an error."""
    try:
        file = io.BytesIO(data)
        read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
        shape, is_fortran, dtype = read_header[npy.read_magic(file)](file)
        body = data[file.tell() :]
        if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(body):
            raise ValueError(f"{dtype} {shape} in {len(body)} bytes")
        array = np.frombuffer(body, dtype).reshape(shape, order="F" if is_fortran else "C")
        return torch.from_numpy(np.array(array, order="C"))
    except Exception as error:
        raise _undecodable(where, "a plain numeric .npy array", error) from None


def decode_json(data: bytes, where: str) -> Any:
    """JSON data."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _undecodable(where, "JSON", error) from None


def _check_pixels(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels, at most {MAX_PIXELS} are read")


def _to_rgb(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    picture = image.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def _undecodable(where: str, expected: str, error: Exception) -> DecodeError:
    # PIL's message about an unknown format holds an address: no two would be equal.
    found = type(error).__name__ + ("" if "object at 0x" in str(error) else f": {error!s:.200}")
    return DecodeError(f"{where} cannot be decoded: expected {expected}; {found}.", ADVICE)
