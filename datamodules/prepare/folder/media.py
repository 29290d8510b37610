"""Pictures and clips of a media folder as members of a sample: bounded, checked, bytes kept."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from datamodules.decode import decode_image
from datamodules.prepare.cells import shown
from datamodules.prepare.folder.containers import Contained, find_contained
from datamodules.prepare.media_paths import MediaPathError, find_frames, find_media
from mmemb.media.clips import CLIPS, is_animated
from mmemb.media.drawings import SUFFIX as DRAWING
from mmemb.media.picture_files import encoded_bytes, encoded_clip, encoded_picture
from mmemb.media.pictures import PICTURES
from mmemb.records.text import limit_marks

_FILES = {DRAWING, *PICTURES, *CLIPS}
"""Suffixes of files that are looked at."""


def side_members(
    folder: Path, media: Sequence[str], prefix: str, num_frames: int
) -> dict[str, bytes]:
    """Returns members: `q0.png` for a picture, `q1.000.webp`, `q1.001.webp`, ... for a clip.

    A picture that moves (GIF, WebP, PNG) is a clip; a drawing (SVG) becomes a picture.

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
        is_clip, files = _encoded(locate(folder, name), num_frames)
        for place, (suffix, data) in enumerate(files):
            frame = f".{place:03d}" if is_clip else ""
            members[f"{prefix}{number}{frame}.{suffix}"] = data

    return members


def locate(folder: Path, name: str) -> Path | Contained:
    """The picture, the clip or the folder of frames of that name; opens no file.

    A name may go on inside of a tar, a Parquet or an Arrow file.

    Raises:
        MediaPathError: it is none of them, or leads elsewhere; names it.
    """
    if (contained := find_contained(folder, name)) is not None:
        return contained

    path = find_media(folder, name)
    if not path.is_dir():
        if path.suffix.lower() not in _FILES:
            expected = ", ".join(sorted(_FILES))
            raise MediaPathError(f"{shown(name)}: expected a file that ends in {expected}")
        return path

    if not find_frames(folder, name, PICTURES):
        raise MediaPathError(f"{shown(name)} is a folder without pictures")
    return path


def files_of(folder: Path, name: str) -> list[Path]:
    """Returns the files whose bytes decide what a name shows: of a part of a file, the whole file.

    Raises:
        MediaPathError: see `locate`.
    """
    match locate(folder, name):
        case Contained(container=container):
            return [container]
        case path if path.is_dir():
            # A file of the folder that is renamed changes the order of the frames, so names count.
            return sorted(find_frames(folder, name, PICTURES))
        case path:
            return [path]


def _encoded(place: Path | Contained, num_frames: int) -> tuple[bool, list[tuple[str, bytes]]]:
    """Returns whether it is a clip, and the files of its picture or frames."""
    match place:
        case Contained(name=name):
            # Bytes decide, since a cell of a data set has no suffix.
            data = place.read()
            suffix = PurePosixPath(place.member).suffix.lower()
            if suffix in CLIPS or is_animated(data):
                return True, encoded_clip(data, num_frames, name)
            return False, [encoded_bytes(data, name)]
        case _ if place.is_dir() or place.suffix.lower() in CLIPS or is_animated(place):
            return True, encoded_clip(place, num_frames)
        case _:
            return False, [encoded_picture(place)]


def content_digests(text: str, members: dict[str, bytes]) -> tuple[str, ...]:
    """Returns hashes of a side's text ("" if it has none) and of each picture or whole clip.

    Names and formats of files do not count, nor do the case, the spaces and the Unicode form of the
    text.
    """
    normal = _normal_text(text)
    media: dict[str, hashlib._Hash] = {}
    for name in sorted(members):
        # `q1.000.webp` is a frame of the second picture or clip, `q1`.
        digest = media.setdefault(name.partition(".")[0], hashlib.sha256())
        # Decoded pixels make a PNG equal to the WebP of the same picture.
        pixels = decode_image(members[name], name)
        digest.update(f"{tuple(pixels.shape)}".encode())
        digest.update(hashlib.sha256(pixels.numpy().tobytes()).digest())

    of_text = hashlib.sha256(normal.encode()).hexdigest() if normal else ""
    return (of_text, *(media[name].hexdigest() for name in sorted(media, key=_number)))


def _number(name: str) -> int:
    """The place of a picture or clip in its side: 1 of `q1`."""
    return int(name[1:])


def _normal_text(text: str) -> str:
    r"""A text as it is compared with others: one file writes an accent as a letter's own, another
    one behind the letter.

    >>> _normal_text("Cafe\N{COMBINING ACUTE ACCENT}  Noir") == _normal_text("caf\xe9 noir")
    True
    """
    return " ".join(unicodedata.normalize("NFC", limit_marks(text.lower())).split())
