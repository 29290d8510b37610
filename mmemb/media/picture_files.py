"""Pictures and clips as files for a shard: checked, bounded in size, with every pixel kept.

A file is a pair of its suffix and its bytes.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from mmemb.media.clips import CLIPS, read_clip
from mmemb.media.drawings import SUFFIX as DRAWING
from mmemb.media.drawings import draw_picture
from mmemb.media.frames import check_sizes, frame_files
from mmemb.media.pictures import (
    FILE_FORMATS,
    PICTURES,
    SHARD_FORMATS,
    check_length,
    check_picture,
    picture_bytes,
    picture_kind,
    read_picture,
    upright_size,
)
from mmemb.records.text import printable

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

_KEPT = ("png", "jpg", "webp")
"""Suffixes of formats whose bytes are kept."""

_WEBP_SIDE = 16383
"""The longest side of a WebP file."""


def encoded_picture(path: Path) -> tuple[str, bytes]:
    """Returns suffix and bytes; BMP, TIFF and GIF become files of the same pixels, RGB on white.

    A drawing (SVG) becomes the pixels that `draw_picture` makes of it.

    Raises:
        ValueError: the picture cannot be read; `mmemb.media.pictures.read_picture` says what can.
    """
    if path.suffix.lower() == DRAWING:
        drawn = draw_picture(picture_bytes(path), path.name)
        return _lossless(read_picture(drawn, ["PNG"], path.name))

    if path.suffix.lower() not in PICTURES:
        expected = ", ".join(sorted({DRAWING, *PICTURES, *CLIPS}))
        raise ValueError(f"{printable(path.name)}: expected a file that ends in {expected}")

    return encoded_bytes(picture_bytes(path), path.name)


def encoded_bytes(data: bytes, where: str) -> tuple[str, bytes]:
    """Returns suffix and bytes of a picture that is no file of its own; see `encoded_picture`.

    Args:
        data: of a file of a picture, of any of its formats.
        where: names it in errors.
    """
    # Much that is called `.jpg` on the web is something else.
    check_length(len(data), where)
    # Formats that shards hold keep their bytes: a second JPEG encoding would lose quality.
    kind = picture_kind(data, FILE_FORMATS, where)
    if kind in _KEPT:
        return check_picture(data, SHARD_FORMATS, where), data
    return _lossless(read_picture(data, FILE_FORMATS, where))


def encoded_clip(path: Path | bytes, num: int, where: str = "") -> list[tuple[str, bytes]]:
    """Returns frames of a folder of pictures in natural order, of a video or of a moving picture.

    Args:
        path: of them; or the bytes of a video or a moving picture.
        num: of frames.
        where: names bytes in errors.

    Raises:
        ValueError: names the file that cannot be read, and says why.
    """
    if isinstance(path, bytes) or not path.is_dir():
        return [_lossless(image) for image in read_clip(path, num, where)]

    chosen = frame_files(path, num)
    frames = [encoded_picture(file) for file in chosen]
    names = [file.name for file in chosen]
    sizes = [
        upright_size(data, SHARD_FORMATS, name)
        for name, (_, data) in zip(names, frames, strict=True)
    ]
    check_sizes(printable(path.name), names, sizes)
    return frames


def _lossless(image: Picture) -> tuple[str, bytes]:
    """Suffix and bytes of a file that keeps every pixel."""
    # WebP is smaller than PNG, but its sides are bounded.
    kind = "webp" if max(image.size) <= _WEBP_SIDE else "png"

    buffer = io.BytesIO()
    image.save(buffer, kind, lossless=True)
    return kind, buffer.getvalue()
