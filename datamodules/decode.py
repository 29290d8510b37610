"""Bytes of a shard into images, arrays and JSON data; nothing else is ever decoded or executed.

Images are WebP, PNG or JPEG and bounded in pixels (`mmemb/media/pictures.py`), arrays are `.npy`
without pickles, and no member name is used as a path.
"""

from __future__ import annotations

import io
import math
from typing import Literal, TypeVar, final

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from mmemb.media.pictures import SHARD_FORMATS, PictureError, read_pixels
from mmemb.records.schema import SchemaError, parse_json
from mmemb.records.text import quote

_Value = TypeVar("_Value")

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
    """Returns an encoded image as uint8 (3, H, W), converted by `read_picture`.

    Args:
        data: a WebP (its first frame), PNG or JPEG file.
        where: names the shard, sample and member in errors.
        longest_side: larger pictures are reduced to it, aspect kept.

    Raises:
        DecodeError: the picture cannot be read.
    """
    try:
        return read_pixels(data, SHARD_FORMATS, where, longest_side)
    except PictureError as error:
        raise DecodeError(str(error), ADVICE) from None


def decode_array(data: bytes, where: str) -> Tensor:
    """A `.npy` file as a tensor; a header that promises more than the bytes hold is an error."""
    try:
        # The header is checked first: `numpy.load` would allocate whatever it promises.
        file = io.BytesIO(data)
        read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
        shape, is_fortran, dtype = read_header[npy.read_magic(file)](file)

        body = data[file.tell() :]
        if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(body):
            raise ValueError(f"{dtype} {shape} in {len(body)} bytes")

        array = np.frombuffer(body, dtype).reshape(shape, order="F" if is_fortran else "C")
        # Copied, since a tensor over the read-only bytes would warn.
        return torch.from_numpy(np.array(array, order="C"))
    except Exception as error:
        # Broken headers raise many kinds of errors, some of them from Python's parser.
        reason = f"{type(error).__name__}: {quote(error, 200)}"
        raise DecodeError(
            f"{where} cannot be decoded: expected a plain numeric .npy array; {reason}.", ADVICE
        ) from None


def decode_json(data: bytes, kind: type[_Value], where: str, advice: str = ADVICE) -> _Value:
    """JSON data as a value of a type; see `mmemb.records.schema.parse_json`."""
    try:
        return parse_json(data, kind, where)
    except SchemaError as error:
        raise DecodeError(error.problem, advice) from None
