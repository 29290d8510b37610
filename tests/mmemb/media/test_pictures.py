"""Every mode and container of pictures against the plain definition, and what is refused."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datamodules.prepare.mmeb.pictures import UnreadableError, picture_file
from mmemb.media import pictures
from mmemb.media.picture_files import encoded_picture
from mmemb.media.pictures import (
    PictureError,
    check_picture,
    picture_bytes,
    read_picture,
    read_pixels,
)
from tests.fixtures.picture_files import png, tiff

FEW = settings(max_examples=40)
SIZES = st.tuples(st.integers(1, 9), st.integers(1, 9))
SEEDS = st.integers(0, 2**32 - 1)
ORDERS = st.sampled_from("<>")


def rgb_of(data: bytes, kind: str) -> np.ndarray:
    assert check_picture(data, [kind], "x")
    return read_pixels(data, [kind], "x").numpy().transpose(1, 2, 0).astype(int)


def near(found: np.ndarray, expected: np.ndarray, tolerance: float) -> bool:
    return bool(np.abs(found - expected).max() <= tolerance)


def samples(size: tuple[int, int], num: int, depth: int, seed: int) -> np.ndarray:
    """Whole numbers; small pictures of few bits hold the ends of their range."""
    return np.random.default_rng(seed).integers(0, 2**depth, (*size, num)).astype(np.uint32)


def of_range(values: np.ndarray, depth: int) -> np.ndarray:
    return values.astype(float) * 255 / (2**depth - 1)


def on_white(colour_HW3: np.ndarray, alpha_HW1: np.ndarray) -> np.ndarray:
    share = alpha_HW1 / 255
    return np.broadcast_to(colour_HW3 * share + 255 * (1 - share), (*alpha_HW1.shape[:2], 3))


@FEW
@given(SIZES, st.sampled_from([1, 2, 4, 8, 16]), st.booleans(), SEEDS)
def test_grey_of_png(size: tuple[int, int], depth: int, transparent: bool, seed: int) -> None:
    grey = samples(size, 1, depth, seed)
    expected = of_range(grey, depth)
    clear = int(grey[0, 0, 0]) if transparent else None
    if transparent:
        expected[grey == clear] = 255
    found = rgb_of(png(grey, depth, 0, None if clear is None else [clear]), "PNG")
    assert near(found, expected, 0.51)


@FEW
@given(SIZES, st.sampled_from([8, 16]), st.sampled_from([2, 4, 6]), SEEDS)
def test_colour_and_alpha_of_png(size: tuple[int, int], depth: int, colour: int, seed: int) -> None:
    values = samples(size, {2: 3, 4: 2, 6: 4}[colour], depth, seed)
    scaled = of_range(values, depth)
    expected = scaled if colour == 2 else on_white(scaled[..., :-1], scaled[..., -1:])
    assert near(rgb_of(png(values, depth, colour), "PNG"), expected, 0.51 if depth == 8 else 2.5)


@FEW
@given(SIZES, SEEDS)
def test_a_transparent_colour_of_png(size: tuple[int, int], seed: int) -> None:
    values = samples(size, 3, 8, seed)
    expected = values.astype(float)
    expected[(values == values[0, 0]).all(-1)] = 255
    assert near(rgb_of(png(values, 8, 2, values[0, 0].tolist()), "PNG"), expected, 0)


@FEW
@given(SIZES, st.sampled_from([1, 2, 4, 8]), st.integers(0, 3), SEEDS)
def test_palettes_of_png(size: tuple[int, int], depth: int, num_alphas: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    palette = random.integers(0, 256, (2**depth, 3))
    alphas = random.integers(0, 256, min(num_alphas, 2**depth))
    indices = samples(size, 1, depth, seed)[..., 0]
    alpha_by_index = np.concatenate([alphas, np.full(2**depth - len(alphas), 255)])
    expected = on_white(palette[indices], alpha_by_index[indices][..., None])
    clear = alphas.tolist() if num_alphas else None
    assert near(rgb_of(png(indices[..., None], depth, 3, clear, palette), "PNG"), expected, 1)


@FEW
@given(
    SIZES,
    ORDERS,
    st.sampled_from([(0, 1), (0, 2), (0, 4), (0, 8), (1, 1), (1, 2), (1, 4), (1, 8), (1, 16)]),
    SEEDS,
)
def test_grey_of_tiff(size: tuple[int, int], order: str, kind: tuple[int, int], seed: int) -> None:
    photometric, depth = kind
    grey = samples(size, 1, depth, seed)
    scaled = of_range(grey, depth)
    expected = scaled if photometric else 255 - scaled
    assert near(rgb_of(tiff(grey, depth, photometric, order), "TIFF"), expected, 0.51)


@FEW
@given(SIZES, st.sampled_from([(0, 16), (1, 12)]), SEEDS)
def test_rarer_grey_of_tiff(size: tuple[int, int], kind: tuple[int, int], seed: int) -> None:
    photometric, depth = kind
    grey = samples(size, 1, depth, seed)
    scaled = of_range(grey, depth)
    expected = scaled if photometric else 255 - scaled
    assert near(rgb_of(tiff(grey, depth, photometric), "TIFF"), expected, 0.51)


@FEW
@given(SIZES, ORDERS, st.sampled_from([0, 1]), SEEDS)
def test_floats_of_tiff_go_from_black_to_white(
    size: tuple[int, int], order: str, photometric: int, seed: int
) -> None:
    grey = np.random.default_rng(seed).random((*size, 1), np.float32)
    expected = 255 * (grey if photometric else 1 - grey)
    assert near(rgb_of(tiff(grey, 32, photometric, order), "TIFF"), expected, 0.51)


@pytest.mark.parametrize("wrong", [-0.01, 1.01, 300.0, np.nan, np.inf])
def test_floats_without_a_range_are_refused(wrong: float) -> None:
    grey = np.array([[[0.5], [wrong]]], np.float32)
    for read in (read_picture, check_picture):
        with pytest.raises(PictureError, match="scan cannot be decoded.*expected 0 .black. to 1"):
            read(tiff(grey, 32, 1), ["TIFF"], "scan")


@pytest.mark.parametrize("kind", ["uint32", "int32", "int16"])
def test_whole_numbers_without_a_white_are_refused(kind: str) -> None:
    grey = np.zeros((2, 2, 1), kind)
    for read in (read_picture, check_picture):
        with pytest.raises(PictureError, match="scan cannot be decoded.*has no white"):
            read(tiff(grey, grey.itemsize * 8, 1), ["TIFF"], "scan")


@FEW
@given(SIZES, ORDERS, st.sampled_from([8, 16]), st.sampled_from([None, 0, 1, 2]), SEEDS)
def test_colour_and_alpha_of_tiff(
    size: tuple[int, int], order: str, depth: int, extra: int | None, seed: int
) -> None:
    values = samples(size, 3 if extra is None else 4, depth, seed)
    if extra == 1:  # associated: colours are stored times alpha
        values[..., :3] = np.minimum(values[..., :3], values[..., 3:])
    scaled = of_range(values, depth)
    colour, alpha = scaled[..., :3], scaled[..., 3:]
    expected = colour
    if extra == 1:
        expected = colour + 255 - alpha
    if extra == 2:
        expected = on_white(colour, alpha)
    file = tiff(values, depth, 2, order, () if extra is None else (extra,))
    assert near(rgb_of(file, "TIFF"), expected, 1 if depth == 8 else 3)


@FEW
@given(SIZES, ORDERS, st.sampled_from([0, 1, 2]), SEEDS)
def test_grey_with_alpha_of_tiff(size: tuple[int, int], order: str, extra: int, seed: int) -> None:
    values = samples(size, 2, 8, seed).astype(float)
    if extra == 1:
        values[..., :1] = np.minimum(values[..., :1], values[..., 1:])
    grey, alpha = values[..., :1], values[..., 1:]
    expected = {0: grey, 1: grey + 255 - alpha, 2: on_white(grey, alpha)}[extra]
    assert near(rgb_of(tiff(values.astype(np.uint8), 8, 1, order, (extra,)), "TIFF"), expected, 1)


@FEW
@given(SIZES, ORDERS, st.booleans(), SEEDS)
def test_palettes_of_tiff(size: tuple[int, int], order: str, has_alpha: bool, seed: int) -> None:
    palette = np.random.default_rng(seed).integers(0, 256, (256, 3))
    values = samples(size, 1 + has_alpha, 8, seed)
    expected = palette[values[..., 0]]
    if has_alpha:
        expected = on_white(expected, values[..., 1:])
    extra = (2,) if has_alpha else ()
    assert near(rgb_of(tiff(values, 8, 3, order, extra, palette * 257), "TIFF"), expected, 1)


def rgb_of_cmyk(values: np.ndarray) -> np.ndarray:
    return (255 - values[..., :3]) * (255 - values[..., 3:]) / 255


def rgb_of_ycbcr(values: np.ndarray) -> np.ndarray:
    y, blue, red = values[..., 0], values[..., 1] - 128, values[..., 2] - 128
    colours = [y + 1.402 * red, y - 0.344136 * blue - 0.714136 * red, y + 1.772 * blue]
    return np.stack(colours, -1).clip(0, 255)


def rgb_of_lab(values: np.ndarray) -> np.ndarray:
    """CIE LAB under D50 to sRGB, by the published numbers."""
    lightness = values[..., 0] * 100 / 255
    a, b = ((values[..., n] + 128) % 256 - 128 for n in (1, 2))
    y = (lightness + 16) / 116
    f = np.stack([y + a / 500, y, y - b / 200], -1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * (0.9642, 1, 0.8249)
    matrix = [
        [3.1338561, -1.6168667, -0.4906146],
        [-0.9787684, 1.9161415, 0.0334540],
        [0.0719453, -0.2289914, 1.4052427],
    ]
    linear = (xyz @ np.array(matrix).T).clip(0, 1)
    gamma = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return gamma * 255


@FEW
@given(
    SIZES,
    ORDERS,
    st.sampled_from([(5, 4, rgb_of_cmyk, 1.5), (6, 3, rgb_of_ycbcr, 1.5)]),
    SEEDS,
)
def test_other_colours_of_tiff(
    size: tuple[int, int],
    order: str,
    space: tuple[int, int, Callable[[np.ndarray], np.ndarray], float],
    seed: int,
) -> None:
    photometric, num, convert, tolerance = space
    values = samples(size, num, 8, seed)
    found = rgb_of(tiff(values, 8, photometric, order), "TIFF")
    assert near(found, convert(values.astype(float)), tolerance)


@given(SIZES, ORDERS, SEEDS)
@settings(max_examples=15)
def test_lab_of_tiff(size: tuple[int, int], order: str, seed: int) -> None:
    # Near grey, where no colour lies outside of what RGB can show.
    values = samples(size, 3, 8, seed)
    values[..., 0] = values[..., 0] // 2 + 96
    values[..., 1:] = (values[..., 1:] // 16 - 8) % 256
    found = rgb_of(tiff(values, 8, 8, order), "TIFF")
    assert near(found, rgb_of_lab(values.astype(float)), 3)


def test_tiff_whose_colours_are_shared_by_pixels_is_refused() -> None:
    file = tiff(np.zeros((4, 4, 3), np.uint8), 8, 6)
    shared = file.replace(
        b"\x12\x02\x03\0\x02\0\0\0\x01\0\x01\0", b"\x12\x02\x03\0\x02\0\0\0\x02\0\x02\0"
    )
    assert shared != file
    with pytest.raises(PictureError, match="fewer pixels"):
        read_picture(shared, ["TIFF"], "x")


def test_a_transparent_colour_of_16_bits_is_refused() -> None:
    values = samples((3, 3), 3, 16, 0)
    for read in (read_picture, check_picture):
        with pytest.raises(PictureError, match="16-bit colours of which one is transparent"):
            read(png(values, 16, 2, values[0, 0].tolist()), ["PNG"], "x")


SAVED: list[tuple[str, str, dict[str, Any], float]] = [
    ("RGB", "WEBP", {"lossless": True}, 0),
    ("RGBA", "WEBP", {"lossless": True, "exact": True}, 1),
    ("RGB", "BMP", {}, 0),
    ("L", "BMP", {}, 0),
    ("1", "BMP", {}, 0),
    ("L", "GIF", {}, 0),
    ("RGB", "TIFF", {"compression": "tiff_lzw"}, 0),
    ("L", "TIFF", {"compression": "tiff_adobe_deflate"}, 0),
    ("I;16", "TIFF", {"compression": "tiff_adobe_deflate"}, 1),
    ("1", "TIFF", {"compression": "group4"}, 0),
    ("L", "JPEG", {"quality": 100}, 3),
    ("RGB", "JPEG", {"quality": 100, "subsampling": 0}, 4),
    ("CMYK", "JPEG", {"quality": 100}, 6),
]


@FEW
@given(SIZES, st.sampled_from(SAVED), SEEDS)
def test_other_containers(
    size: tuple[int, int], saved: tuple[str, str, dict[str, Any], float], seed: int
) -> None:
    mode, kind, options, tolerance = saved
    depth = 16 if mode == "I;16" else 8
    values = samples(size, len(mode) if mode.isalpha() else 1, depth, seed)
    if mode == "1":
        values = values // 128 * 255
    shaped = values if values.shape[2] > 1 else values[..., 0]
    image = Image.fromarray(shaped.astype(np.uint16 if depth == 16 else np.uint8))
    if mode in ("1", "CMYK"):
        image = (
            image.convert("1")
            if mode == "1"
            else Image.frombytes(mode, size[::-1], bytes(values.astype(np.uint8)))
        )

    file = io.BytesIO()
    image.save(file, kind, **options)
    expected = of_range(values, depth)
    if mode == "RGBA":
        expected = on_white(expected[..., :3], expected[..., 3:])
    if mode == "CMYK":
        expected = rgb_of_cmyk(values.astype(float))
    assert near(rgb_of(file.getvalue(), kind), expected, tolerance)


@pytest.mark.parametrize("kind", ["WEBP", "GIF", "PNG"])
def test_of_several_frames_the_first_is_read(kind: str) -> None:
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("#ff0000", "#00ff00", "#0000ff")]
    file = io.BytesIO()
    frames[0].save(
        file,
        kind,
        save_all=True,
        append_images=frames[1:],
        **({"lossless": True} if kind == "WEBP" else {}),
    )
    assert near(rgb_of(file.getvalue(), kind), np.broadcast_to([255, 0, 0], (3, 4, 3)), 0)


@pytest.mark.parametrize("pages", [(0, 0), (2, 2, 2), (0, 1, 0), (0, 4, 2)])
def test_several_pages_of_a_scan_are_refused(pages: tuple[int, ...]) -> None:
    """Of a document nobody may lose all pages but the first one."""
    scan = tiff(samples((3, 4), 1, 8, 0), 8, 1, pages=pages)
    for read in (read_picture, check_picture):
        with pytest.raises(PictureError, match="it has several pages: save each"):
            read(scan, ["TIFF"], "x")


@pytest.mark.parametrize("pages", [(0,), (2,), (0, 1), (0, 1, 5)])
def test_smaller_copies_and_masks_of_a_picture_are_no_pages(pages: tuple[int, ...]) -> None:
    values = samples((3, 4), 1, 8, 0)
    assert near(rgb_of(tiff(values, 8, 1, pages=pages), "TIFF"), values, 0)


TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@FEW
@given(SIZES, st.integers(1, 8), st.sampled_from(["PNG", "WEBP", "TIFF", "grey TIFF"]), SEEDS)
def test_pictures_stand_upright(
    size: tuple[int, int], orientation: int, kind: str, seed: int
) -> None:
    if kind == "grey TIFF":
        values = samples(size, 1, 16, seed)
        found = rgb_of(tiff(values, 16, 1, orientation=orientation), "TIFF")
        expected = of_range(values, 16)
    else:
        expected = samples(size, 3, 8, seed).astype(float)
        image, file, exif = Image.fromarray(expected.astype(np.uint8)), io.BytesIO(), Image.Exif()
        exif[0x0112] = orientation
        image.save(file, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
        found = rgb_of(file.getvalue(), kind)
    assert near(found, TURNS[orientation](expected), 0.51)


def test_a_wrong_entry_of_exif_data_does_not_hide_the_others() -> None:
    """Editors write texts where numbers belong; viewers turn the picture all the same."""
    turn, resolution = (0x0112, 3, 1, 6), (0x011A, 2, 2, ord("x"))
    entries = b"".join(struct.pack("<HHII", *entry) for entry in (turn, resolution))
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + entries + bytes(4)
    values, file = samples((3, 4), 3, 8, 0), io.BytesIO()
    Image.fromarray(values.astype(np.uint8)).save(file, "PNG", exif=exif)
    assert near(rgb_of(file.getvalue(), "PNG"), TURNS[6](values), 0)


def test_pillow_does_not_warn_of_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither of EXIF data that are cut nor of many pixels, whose bound is ours."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    exif, file = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0", io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "JPEG", exif=exif)

    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        Image.open(io.BytesIO(file.getvalue())).getexif()
        assert len(found) == 2, "it warns elsewhere"
        read_picture(file.getvalue(), ["JPEG"], "x")
    assert len(found) == 2


@FEW
@given(st.sampled_from(["PNG", "WEBP", "JPEG"]), st.data())
def test_what_is_checked_can_be_read(kind: str, data: st.DataObject) -> None:
    """A preparation that checks pictures must not keep what a training then refuses."""
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(samples((9, 7), 3, 8, 0).astype(np.uint8)).save(file, kind, exif=exif)
    broken = bytearray(file.getvalue())
    for place, byte in data.draw(
        st.lists(st.tuples(st.integers(0, len(broken) - 1), st.integers(0, 255)), max_size=3)
    ):
        broken[place] = byte

    outcomes = []
    for read in (check_picture, read_picture):
        try:
            read(bytes(broken), pictures.SHARD_FORMATS, "x")
            outcomes.append("")
        except PictureError as error:
            outcomes.append(str(error))
    assert bool(outcomes[0]) == bool(outcomes[1]), outcomes


def test_a_picture_without_pixels_or_with_too_many_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pictures, "MAX_PIXELS", 99)
    for read in (read_picture, check_picture):
        with pytest.raises(PictureError, match="x cannot be decoded.*10 x 10 pixels, at most 99"):
            read(png(np.zeros((10, 10, 1), np.uint8), 8, 0), ["PNG"], "x")


def test_a_name_cannot_forge_a_line_of_a_message() -> None:
    with pytest.raises(PictureError, match=r"^a\\nrow 9: \\x1b\[2J\\udcff cannot") as raised:
        read_picture(b"", ["PNG"], "a\nrow 9: \x1b[2J\udcff")
    assert str(raised.value).endswith("image; its bytes are none of these.")


def test_a_file_that_is_too_long_for_a_picture_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "long.png").open("wb") as file:
        file.truncate(10**12)
    for read, error in (
        (picture_bytes, PictureError),
        (picture_file, UnreadableError),
        (encoded_picture, PictureError),
    ):
        with pytest.raises(error, match=r"long\.png has 1000000000000 bytes: expected a picture"):
            read(tmp_path / "long.png")
