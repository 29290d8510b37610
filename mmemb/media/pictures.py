"""Pictures of others as 8-bit RGB on white: the one place that opens encoded ones.

Shapes: H height, W width.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np
import torch
from torch import Tensor

from mmemb.records.text import printable

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from PIL.Image import Transpose

MAX_PIXELS = 64_000_000
"""Most pixels of a picture; one with more is refused before it is decoded."""

MAX_BYTES = 8 * MAX_PIXELS
"""Most bytes of a picture's file: four numbers of 16 bits for each pixel."""

SHARD_FORMATS = ("WEBP", "PNG", "JPEG")
"""Formats of the members of a sample."""

FILE_FORMATS = (*SHARD_FORMATS, "GIF", "BMP", "TIFF")
"""Formats of a picture's file, whatever its suffix."""

PICTURES = {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff"}
"""Suffixes of files that are looked at as pictures."""

_SUFFIXES = {
    "WEBP": "webp", "PNG": "png", "JPEG": "jpg", "MPO": "jpg", "GIF": "gif", "BMP": "bmp",
    "TIFF": "tif",
}  # fmt: skip
"""By Pillow's format; MPO is a JPEG file that holds more pictures behind the first."""

_MOST_PAGES = 100
"""Pages of a TIFF that are looked at."""

_PLAIN = {
    "1", "L", "LA", "La", "P", "PA", "RGB", "RGBX", "RGBA", "RGBa", "CMYK", "YCbCr", "LAB", "HSV",
}  # fmt: skip
"""Modes of 8 bits or fewer, which Pillow converts."""

_GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N")

_SUBFILE, _BITS_PER_SAMPLE, _PHOTOMETRIC, _SUBSAMPLING = 254, 258, 262, 530
"""Tags of TIFF."""
_WHITE_IS_ZERO = 0
_SMALLER, _MASK = 1, 4
"""Bits of `_SUBFILE`: the page is a smaller copy or a mask of another one."""


@final
class PictureError(ValueError):
    """A picture that cannot be read, or whose colours are not defined."""


@final
class _RefusedError(ValueError):
    """Why a picture is refused although Pillow would open it."""


def picture_bytes(path: Path) -> bytes:
    """The content of a picture's file.

    Raises:
        PictureError: it is longer than `MAX_BYTES`.
        OSError: it cannot be read.
    """
    check_length(path.stat().st_size, path.name)
    return path.read_bytes()


def check_length(size: int, where: str) -> None:
    """Refuses a file of more than `MAX_BYTES` as a picture.

    Raises:
        PictureError: names it.
    """
    if size > MAX_BYTES:
        raise PictureError(
            f"{printable(where)} has {size} bytes: expected a picture, of which at most "
            f"{MAX_BYTES} are read. Save it compressed, or smaller."
        )


def read_picture(
    data: bytes, formats: Sequence[str], where: str, longest_side: int | None = None
) -> Picture:
    """Decodes a picture, or its first frame, turned as its EXIF data say, as RGB on white.

    Grey of 12 or 16 bits is scaled from its range to that of 8 bits, colour of 16 bits keeps its
    higher byte, and grey in floating point must lie between 0 (black) and 1 (white), as no format
    says what else it means. Whole numbers of 32 bits or with a sign have no white at all: they are
    refused, and so is a TIFF of several pages (smaller copies and masks are none). Alpha,
    transparent colours and palettes with alpha are laid on white. CMYK becomes RGB by the plain
    formula (a JPEG is read as Adobe writes it, inverted), LAB as under the light D50. Colour
    profiles and gammas are not applied: values count as sRGB, as in other image encoders.

    Args:
        data: a file of one of the formats.
        formats: as Pillow calls them; whatever else Pillow opens (PostScript by another program)
            is refused.
        where: names the file, or shard, sample and member, in errors.
        longest_side: larger pictures are reduced to it, aspect kept.

    Raises:
        PictureError: not one of these formats, truncated, of more than `MAX_PIXELS`, or of a kind
            that has no right conversion.
    """
    from PIL import Image

    with _opened(data, formats, where) as image:
        rgb = _upright(image)

    if longest_side is not None and max(rgb.size) > longest_side:
        rgb.thumbnail((longest_side, longest_side), Image.Resampling.BICUBIC)
    return rgb


def read_pixels(
    data: bytes, formats: Sequence[str], where: str, longest_side: int | None = None
) -> Tensor:
    """The picture as uint8 (3, H, W); see `read_picture`."""
    return _pixels(read_picture(data, formats, where, longest_side))


def image_pixels(image: Picture, where: str) -> Tensor:
    """Converts an image of Pillow as `read_picture` does, to uint8 (3, H, W).

    Args:
        image: as it stands: of an animation, the frame that is shown.
        where: names it in errors.

    Raises:
        PictureError: see `read_picture`; or it was not loaded before its file was closed.
    """
    with _named(f"{printable(where)} cannot be read"):
        if getattr(image, "tile", ()) and getattr(image, "fp", None) is None:
            raise _RefusedError("its file is closed: call image.load() before that")
        return _pixels(_upright(image))


def _pixels(rgb: Picture) -> Tensor:
    return torch.from_numpy(np.array(np.asarray(rgb).transpose(2, 0, 1), order="C"))


def check_picture(data: bytes, formats: Sequence[str], where: str) -> str:
    """Sees that `read_picture` can read a picture; returns the suffix that its format has in names.

    Raises:
        PictureError: see `read_picture`.
    """
    with _opened(data, formats, where) as image:
        _check(image)
        image.draft(image.mode, (1, 1))  # a JPEG at an eighth: all bytes read, less arithmetic
        image.load()
        if image.mode == "F":
            to_rgb(image)  # whether there is a white depends on the values
        return _SUFFIXES[str(image.format)]


def picture_kind(data: bytes, formats: Sequence[str], where: str) -> str:
    """The suffix that a picture's format has in names, from its head alone.

    Raises:
        PictureError: it is none of these formats.
    """
    with _opened(data, formats, where) as image:
        return _SUFFIXES[str(image.format)]


def upright_size(data: bytes, formats: Sequence[str], where: str) -> tuple[int, int]:
    """Width and height that `read_picture` gives, from a picture's head alone.

    Raises:
        PictureError: the head cannot be read.
    """
    from PIL import Image

    turns = Image.Transpose
    on_side = (turns.TRANSPOSE, turns.ROTATE_270, turns.TRANSVERSE, turns.ROTATE_90)
    with _opened(data, formats, where) as image:
        return (image.height, image.width) if _turn(image) in on_side else image.size


@contextmanager
def _opened(data: bytes, formats: Sequence[str], where: str) -> Iterator[Picture]:
    """Opens a picture; whatever goes wrong in the block is a `PictureError` that names `where`."""
    from PIL import Image

    expected = f"expected a whole {'/'.join(formats)} image"
    with (
        _named(f"{printable(where)} cannot be decoded: {expected}"),
        Image.open(io.BytesIO(data), formats=list(formats)) as image,
    ):
        yield image


@contextmanager
def _named(problem: str) -> Iterator[None]:
    """Turns any error in the block into a `PictureError`."""
    from PIL import UnidentifiedImageError

    try:
        with without_pillow_warnings():
            yield
    except Exception as error:  # Pillow's decoders raise whatever the bytes make them raise
        match error:
            case _RefusedError():
                reason = str(error)
            case UnidentifiedImageError():
                reason = "its bytes are none of these"
            case _:
                reason = f"{type(error).__name__}: {printable(str(error)):.200}"
        raise PictureError(f"{problem}; {reason}.") from None


@contextmanager
def without_pillow_warnings() -> Iterator[None]:
    """Silences Pillow about odd EXIF data, palettes and sizes.

    Its warnings name no picture; this module refuses by name what cannot be read.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _upright(image: Picture) -> Picture:
    """An opened picture as RGB on white, turned as its EXIF data say."""
    _check(image)
    _scale_transparent_grey(image)
    image.load()

    turn = _turn(image)
    rgb = to_rgb(image)
    return rgb if turn is None else rgb.transpose(turn)


def _check(image: Picture) -> None:
    """Refuses, before it is decoded, what costs too much or has no right conversion."""
    if not image.width or not image.height:
        raise _RefusedError(f"it is empty: {image.width} x {image.height} pixels")
    if image.width * image.height > MAX_PIXELS:
        raise _RefusedError(f"{image.width} x {image.height} pixels, at most {MAX_PIXELS} are read")

    if image.mode == "I":
        raise _RefusedError(
            "grey of 32 bits or with a sign, which has no white: convert it to 8 bits"
        )
    if image.mode not in (*_PLAIN, *_GREY_16, "F"):
        raise _RefusedError(
            f"its mode {image.mode!r} has no conversion to RGB: convert it to 8 bits"
        )

    if image.mode == "YCbCr" and _tag(image, _SUBSAMPLING, 1 + (image.format == "TIFF")) != 1:
        raise _RefusedError("colours of fewer pixels than its brightness: convert it to RGB")

    if image.format == "TIFF" and _has_more_pages(image):
        raise _RefusedError("it has several pages: save each of them as a picture of its own")

    # Pillow keeps the higher bytes of pixels, which do not say which of them are transparent.
    if "transparency" in image.info and _raw_mode(image).startswith("RGB;16"):
        raise _RefusedError("16-bit colours of which one is transparent: convert it to 8 bits")


def _has_more_pages(image: Picture) -> bool:
    """Tells whether a TIFF has further pages; smaller copies and masks of the first are none."""
    try:
        for page in range(1, _MOST_PAGES):
            image.seek(page)
            if not _tag(image, _SUBFILE, 0) & (_SMALLER | _MASK):
                return True
    except Exception:  # behind the last one, or what stands there is no page
        return False
    finally:
        image.seek(0)
    return True


def _turn(image: Picture) -> Transpose | None:
    """The transposition that makes a decoded picture upright.

    None = none, or the EXIF data cannot be read.

    Pillow's own function writes these data anew, and fails where others wrote them wrongly.
    """
    from PIL import ExifTags, Image

    turns = Image.Transpose
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # as in `_opened`; viewers show such a picture as it is stored
        return None
    return {
        2: turns.FLIP_LEFT_RIGHT, 3: turns.ROTATE_180, 4: turns.FLIP_TOP_BOTTOM,
        5: turns.TRANSPOSE, 6: turns.ROTATE_270, 7: turns.TRANSVERSE, 8: turns.ROTATE_90,
    }.get(orientation)  # fmt: skip


def _scale_transparent_grey(image: Picture) -> None:
    """Pillow scales grey of 2 and 4 bits to 8, but not the one that is transparent."""
    peak = {"L;2": 3, "L;4": 15}.get(_raw_mode(image))
    if peak and "transparency" in image.info:
        image.info["transparency"] = (image.info["transparency"] & peak) * 255 // peak


def to_rgb(image: Picture) -> Picture:
    """An opened picture, or one frame of it, as 8-bit RGB on white; see `read_picture`."""
    from PIL import Image

    if image.mode in _GREY_16:
        return Image.fromarray(_grey_of_16_bits(image)).convert("RGB")
    if image.mode == "F":
        return Image.fromarray(_grey_of_floats(image)).convert("RGB")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")

    # Pillow has no way from grey times alpha to RGBA.
    picture = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def _grey_of_16_bits(image: Picture) -> np.ndarray:
    values_HW = np.asarray(image)
    peak = (1 << _tag(image, _BITS_PER_SAMPLE, 16)) - 1
    steps = np.arange(peak + 1)
    grey_by_value = ((steps * 255 + peak // 2) // peak).astype(np.uint8)
    if _tag(image, _PHOTOMETRIC, 1) == _WHITE_IS_ZERO:
        grey_by_value = grey_by_value[::-1]

    if "transparency" in image.info:
        grey_by_value[image.info["transparency"]] = 255
    return grey_by_value[values_HW]


def _grey_of_floats(image: Picture) -> np.ndarray:
    values_HW = np.asarray(image)
    if not (values_HW.min() >= 0 and values_HW.max() <= 1):  # also if one is not a number
        raise _RefusedError(
            f"grey in floating point from {values_HW.min():g} to {values_HW.max():g}, expected "
            "0 (black) to 1 (white): convert it to 8 bits"
        )
    if _tag(image, _PHOTOMETRIC, 1) == _WHITE_IS_ZERO:
        values_HW = 1 - values_HW
    return (values_HW * 255).round().astype(np.uint8)


def _tag(image: Picture, number: int, default: int) -> int:
    """The highest number of a tag of a TIFF file's head; other formats have none."""
    if image.format != "TIFF":
        return default
    value = image.tag_v2.get(number, default)  # type: ignore[attr-defined]
    return int(max(value) if isinstance(value, tuple) else value)


def _raw_mode(image: Picture) -> str:
    """The mode in which pixels are stored; known only before they are decoded."""
    tiles = getattr(image, "tile", ())  # an image that was made in memory has none
    arguments = tiles[0][3] if tiles else ""
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)
