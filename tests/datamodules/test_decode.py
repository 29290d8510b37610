"""Decoding is safe: formats, pixels, pickles, headers that lie."""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.decode import DecodeError, decode_array, decode_image, decode_json
from mmemb.media import pictures
from tests.fixtures.tiny_data import picture


def encode(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_image_is_uint8_chw(kind):
    pixels = decode_image(encode(Image.new("RGB", (5, 3), (255, 0, 0)), kind), "x")
    assert pixels.shape == (3, 3, 5)
    assert pixels.dtype == torch.uint8
    assert pixels.is_contiguous()
    assert pixels[0].min() > 250
    assert pixels[1:].max() < 5


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGBA", "LA", "I;16"])
def test_other_modes_become_rgb(mode):
    assert decode_image(encode(Image.new(mode, (4, 4))), "x").shape == (3, 4, 4)


def test_transparency_is_white():
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (10, 20, 30, 255))
    assert decode_image(encode(image), "x")[:, 0].tolist() == [[255, 10], [255, 20], [255, 30]]


def test_longest_side():
    data = encode(Image.new("RGB", (40, 20)))
    assert decode_image(data, "x", longest_side=10).shape == (3, 5, 10)
    assert decode_image(data, "x", longest_side=100).shape == (3, 20, 40)


def test_pixel_bound(monkeypatch):
    monkeypatch.setattr(pictures, "MAX_PIXELS", 99)
    with pytest.raises(DecodeError, match="10 x 10 pixels, at most 99"):
        decode_image(encode(Image.new("RGB", (10, 10))), "shard, sample")


def test_decompression_bomb():
    data = bytearray(encode(Image.new("1", (64, 64))))
    data[16:24] = (60_000).to_bytes(4, "big") * 2  # the header claims 3.6 gigapixels
    with pytest.raises(DecodeError, match="cannot be decoded"):
        decode_image(bytes(data), "x")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not an image",
        picture(1)[:40],
        encode(Image.new("RGB", (50, 50), "red"))[:-30],
        encode(Image.new("RGB", (4, 4)), "GIF"),
        encode(Image.new("RGB", (4, 4)), "TIFF"),
        encode(Image.new("RGB", (4, 4)), "EPS"),
    ],
    ids=["empty", "text", "short webp", "short png", "gif", "tiff", "eps"],
)
def test_undecodable_images_name_the_place(data):
    with pytest.raises(DecodeError, match=r"here cannot be decoded: expected a whole WEBP"):
        decode_image(data, "here")


def npy(array: np.ndarray, **options: bool) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("dtype", ["float16", "float32", "int32", "int64", "uint8", "bool"])
def test_arrays(dtype):
    array = np.arange(6).reshape(2, 3).astype(dtype)
    assert decode_array(npy(array), "x").tolist() == array.tolist()
    assert decode_array(npy(np.asfortranarray(array)), "x").tolist() == array.tolist()


def test_array_of_no_rows():
    assert decode_array(npy(np.zeros((0, 4), np.float32)), "x").shape == (0, 4)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        npy(np.array([Bomb()], dtype=object), allow_pickle=True),
        pickle.dumps(Bomb()),
        npy(np.zeros(9))[:-1],
        npy(np.zeros(9)).replace(b"(9,)", b"(99999999999,)"),
        npy(np.array(["text"])),
    ],
    ids=["empty", "objects", "pickle", "short", "lying header", "text"],
)
def test_bad_arrays(data):
    with pytest.raises(DecodeError, match=r"here cannot be decoded: expected a plain numeric"):
        decode_array(data, "here")


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe{", b"[" * 100_000])
def test_bad_json(data):
    with pytest.raises(DecodeError, match=r"here: (no JSON|the JSON is nested)") as got:
        decode_json(data, Any, "here")
    assert "on_error: skip" in str(got.value)
