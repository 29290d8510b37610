"""Media files against the size that they state: a file that was cut is found exactly.

MP4, Matroska, RIFF (AVI, WebP) and GIF state their end; of a transport stream only its packets
have a known length. Nothing is decoded here, and at most `MAX_STEPS` heads are looked at.
"""

from __future__ import annotations

import os
from typing import BinaryIO

MAX_STEPS = 100_000
"""Heads of boxes, chunks or blocks; longer files are not followed to their end."""

HEAD = 189
"""First bytes of a file that tell its kind: those of a transport stream's packet, and one more."""

_FIRST_BOXES = (b"ftyp", b"styp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
_STILL_BRANDS = (b"avif", b"heic", b"heix", b"mif1")
_GIF = (b"GIF87a", b"GIF89a")
_SYNC, _PACKET = b"G", 188
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def stated_size(file: BinaryIO) -> int | None:
    """Returns the size that a file states, in bytes; None where it states none.

    The file may be longer: readers pass over what stands behind the stated end.
    """
    actual = file.seek(0, os.SEEK_END)
    file.seek(0)
    # Bytes decide, not the suffix: many files carry the wrong one.
    head = file.read(HEAD)
    file.seek(0)

    if head[:4] == _EBML:
        return _matroska(file, actual)
    if head[:4] == b"RIFF":
        return _riff(file, actual)
    if head[:6] in _GIF:
        return _gif(file, actual)
    if head[4:8] in _FIRST_BOXES:
        return _boxes(file, actual)
    # A transport stream states no size; whole packets are the best that can be checked.
    if head[:1] == _SYNC:
        return -(-actual // _PACKET) * _PACKET
    return None


def is_moving_kind(head: bytes) -> bool:
    """Tells by the first `HEAD` bytes of a file whether it is a video or a GIF.

    Pictures of HEIF and AVIF stand in the boxes of MP4, and are no videos.
    """
    if head[4:8] in _FIRST_BOXES:
        return head[8:12] not in _STILL_BRANDS
    is_stream = head[:1] == _SYNC and head[_PACKET : _PACKET + 1] == _SYNC
    is_avi = (head[:4], head[8:12]) == (b"RIFF", b"AVI ")
    return is_avi or is_stream or head[:4] == _EBML or head[:6] in _GIF


def _boxes(file: BinaryIO, actual: int) -> int | None:
    """MP4 and QuickTime: boxes, each with its length in front."""
    end = 0
    for _ in range(MAX_STEPS):
        file.seek(end)
        head = file.read(16)
        if len(head) < 8 or not _is_kind(head[4:8]):  # the end, or padding
            return end

        size = int.from_bytes(head[:4], "big")
        # A box beyond 4 GiB states its length in the eight bytes behind its kind.
        if size == 1 and len(head) == 16:
            size = int.from_bytes(head[8:], "big")

        if size < 8:  # the last box goes to the end of the file, however long that is
            return end

        end += size
        if end >= actual:
            return end
    return None


def _riff(file: BinaryIO, actual: int) -> int | None:
    """AVI, in several parts if it is long, and WebP."""
    end = 0
    for _ in range(MAX_STEPS):
        file.seek(end)
        head = file.read(8)

        size = int.from_bytes(head[4:], "little")
        if len(head) < 8 or head[:4] != b"RIFF":
            return end

        if size in (0, 2**32 - 1):  # never finished by its writer
            return None

        end += 8 + size
        if end >= actual:
            return end
        # Chunks begin at even places.
        end += size % 2
    return None


def _matroska(file: BinaryIO, actual: int) -> int | None:
    """The end of the segment; a writer that cannot go back leaves its size open."""
    for _ in range(MAX_STEPS):
        kind = file.read(4)
        size = _ebml_number(file)
        if size is None or kind not in (_EBML, _SEGMENT):
            return None

        end = file.tell() + size
        if kind == _SEGMENT or end > actual:
            return end
        file.seek(end)
    return None


def _ebml_number(file: BinaryIO) -> int | None:
    """A number whose first byte says how long it is; all ones stand for unknown."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    # The number of leading zero bits of the first byte gives the length.
    length = 9 - first[0].bit_length()
    rest = file.read(length - 1)
    value = int.from_bytes(bytes([first[0] & ((1 << (8 - length)) - 1)]) + rest, "big")
    return None if len(rest) < length - 1 or value == (1 << 7 * length) - 1 else value


def _gif(file: BinaryIO, actual: int) -> int | None:
    """Pictures and extensions up to the end mark; without one a byte is missing."""
    # Behind the signature and the size of the screen.
    file.seek(10)
    _skip_colours(file, file.read(3)[:1])

    for _ in range(MAX_STEPS):
        kind = file.read(1)
        if kind == b";":
            return file.tell()
        if kind not in (b",", b"!"):  # something unknown, or the end of a file that was cut
            return None if kind else max(file.tell(), actual) + 1

        if kind == b",":
            _skip_colours(file, file.read(9)[8:])
        # One byte (a code size or a label), then blocks with their lengths; length 0 ends them.
        file.seek(1, os.SEEK_CUR)
        while (length := file.read(1)) not in (b"", b"\0"):
            file.seek(length[0], os.SEEK_CUR)
    return None


def _skip_colours(file: BinaryIO, flags: bytes) -> None:
    if flags and flags[0] & 0x80:
        file.seek(3 * 2 ** ((flags[0] & 7) + 1), os.SEEK_CUR)


def _is_kind(kind: bytes) -> bool:
    return len(kind) == 4 and all(0x20 <= byte < 0x7F for byte in kind)
