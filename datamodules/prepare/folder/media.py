"""Pictures and clips of a media folder as members of a sample: bounded, checked, bytes kept."""

from __future__ import annotations

import hashlib
import io
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from datamodules.decode import decode_image
from datamodules.prepare.cells import shown
from datamodules.prepare.folder.clips import VIDEOS, is_animated, read_clip
from datamodules.prepare.media_paths import MediaPathError, find_frames, find_media, is_frame
from datamodules.prepare.mmeb.frames import choose_frames
from mmemb.media.pictures import (
    SHARD_FORMATS,
    check_picture,
    picture_bytes,
    picture_kind,
    read_picture,
    upright_size,
)
from mmemb.records.text import limit_marks, printable

PICTURES = {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff"}
CLIPS = {*VIDEOS, ".gif"}
"""Suffixes of files that are looked at as pictures, and as clips."""

_FORMATS = (*SHARD_FORMATS, "GIF", "BMP", "TIFF")
"""Formats of pictures, whatever their suffix."""

_KEPT = ("png", "jpg", "webp")
"""Suffixes of formats whose bytes are kept."""

_WEBP_SIDE = 16383
"""The longest side of a WebP file."""


def side_members(
    folder: Path, media: Sequence[str], prefix: str, num_frames: int
) -> dict[str, bytes]:
    """Returns members: `q0.png` for a picture, `q1.000.webp`, `q1.001.webp`, ... for a clip.

    A picture that moves (GIF, WebP, PNG) is a clip.

    Args:
        folder: that paths are relative to.
        media: paths of pictures, of video files or of folders of frames.
        prefix: `q`, `t` or `c`.
        num_frames: of a clip, evenly spaced in time; all of them if there are fewer.

    Raises:
        ValueError: a path that leads elsewhere, is missing or cannot be decoded; names it.
    """
    members: dict[str, bytes] = {}
    for number, name in enumerate(media):
        path = locate(folder, name)
        if path.is_dir() or path.suffix.lower() in CLIPS or is_animated(path):
            for place, (suffix, data) in enumerate(clip_frames(path, num_frames)):
                members[f"{prefix}{number}.{place:03d}.{suffix}"] = data
        else:
            suffix, data = picture(path)
            members[f"{prefix}{number}.{suffix}"] = data

    return members


def locate(folder: Path, name: str) -> Path:
    """The picture, the clip or the folder of frames of that name; opens no file.

    Raises:
        MediaPathError: it is none of them, or leads elsewhere; names it.
    """
    path = find_media(folder, name)
    if not path.is_dir():
        if path.suffix.lower() not in PICTURES | CLIPS:
            expected = ", ".join(sorted(PICTURES | CLIPS))
            raise MediaPathError(f"{shown(name)}: expected a file that ends in {expected}")
        return path

    if not find_frames(folder, name, PICTURES):
        raise MediaPathError(f"{shown(name)} is a folder without pictures")
    return path


def picture(path: Path) -> tuple[str, bytes]:
    """Suffix and bytes; BMP, TIFF and GIF become files that keep every pixel, as RGB on white.

    Raises:
        ValueError: the picture cannot be read; `mmemb.media.pictures.read_picture` says what can.
    """
    if path.suffix.lower() not in PICTURES:
        expected = ", ".join(sorted(PICTURES | CLIPS))
        raise ValueError(f"{printable(path.name)}: expected a file that ends in {expected}")

    # Much that is called `.jpg` on the web is something else.
    data = picture_bytes(path)
    # Formats that shards hold keep their bytes: a second JPEG encoding would lose quality.
    kind = picture_kind(data, _FORMATS, path.name)
    if kind in _KEPT:
        return check_picture(data, SHARD_FORMATS, path.name), data
    return _lossless(read_picture(data, _FORMATS, path.name))


def clip_frames(path: Path, num: int) -> list[tuple[str, bytes]]:
    """Frames of a folder of pictures, in natural order, or of a video file or animated picture.

    Raises:
        ValueError: names the file that cannot be read, and says why.
    """
    if path.is_dir():
        # `natural_order` makes frame10 follow frame9, as cameras and FFmpeg do not always pad
        # numbers.
        files = sorted((p for p in path.iterdir() if is_frame(p.name, PICTURES)), key=natural_order)
        if not files:
            raise ValueError(f"{printable(path.name)} is a folder without pictures")
        chosen = [files[place] for place in choose_frames(len(files), num)]

        frames = [picture(file) for file in chosen]
        _check_sizes(printable(path.name), chosen, [data for _, data in frames])
        return frames
    return [_lossless(image) for image in read_clip(path, num)]


def _check_sizes(clip: str, files: Sequence[Path], frames: Sequence[bytes]) -> None:
    """Refuses frames of several sizes: models that read clips squeeze them into the first one's."""
    sizes = [
        upright_size(data, SHARD_FORMATS, file.name)
        for file, data in zip(files, frames, strict=True)
    ]

    # The first frame is the reference, so the message names one file that differs from it.
    for file, size in zip(files, sizes, strict=True):
        if size != (first := sizes[0]):
            names = printable(file.name), printable(files[0].name)
            raise ValueError(
                f"{clip}: {names[0]} has {size[0]} x {size[1]} pixels, {names[1]} "
                f"{first[0]} x {first[1]}: expected one size of a clip's frames; pictures of "
                "several sizes are listed one by one"
            )


def natural_order(path: Path) -> list[tuple[int, str]]:
    """Key that sorts `frame2` before `frame10`."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in _parts(path.name)]


def content_digest(text: str, members: dict[str, bytes]) -> str:
    """Returns a hash of a side's text and pixels; names and formats of files do not count, nor do
    the case, the spaces and the Unicode form of the text."""
    digest = hashlib.sha256(_normal_text(text).encode())
    for name in sorted(members):
        # Decoded pixels make a PNG equal to the WebP of the same picture.
        pixels = decode_image(members[name], name)
        digest.update(f"{tuple(pixels.shape)}".encode())
        digest.update(hashlib.sha256(pixels.numpy().tobytes()).digest())
    return digest.hexdigest()


def _normal_text(text: str) -> str:
    r"""A text as it is compared with others: one file writes an accent as a letter's own, another
    one behind the letter.

    >>> _normal_text("Cafe\N{COMBINING ACUTE ACCENT}  Noir") == _normal_text("caf\xe9 noir")
    True
    """
    return " ".join(unicodedata.normalize("NFC", limit_marks(text.lower())).split())


def _parts(name: str) -> list[str]:
    return [part for part in re.split(r"(\d+)", name) if part]


def _lossless(image: Image.Image) -> tuple[str, bytes]:
    """Suffix and bytes of a file that keeps every pixel."""
    # WebP is smaller than PNG, but its sides are bounded.
    kind = "webp" if max(image.size) <= _WEBP_SIDE else "png"

    buffer = io.BytesIO()
    image.save(buffer, kind, lossless=True)
    return kind, buffer.getvalue()
