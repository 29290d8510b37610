"""Picture files written sample by sample, by the formats' definitions and not by Pillow."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np

_BYTE, _SHORT, _LONG = 1, 3, 4
_SIZES = {_BYTE: "B", _SHORT: "H", _LONG: "I"}


def png(
    samples_HWC: np.ndarray,
    depth: int,
    colour: int,
    transparent: Sequence[int] | None = None,
    palette: np.ndarray | None = None,
) -> bytes:
    """A PNG file.

    Args:
        samples_HWC: whole numbers below `2 ** depth`.
        depth: bits of a sample.
        colour: 0 grey, 2 RGB, 3 palette, 4 grey with alpha, 6 RGBA.
        transparent: the sample, or three, that are transparent; of a palette alphas as bytes.
        palette: uint8 (N, 3).
    """
    height, width = samples_HWC.shape[:2]
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row for row in _packed_rows(samples_HWC, depth, ">"))
    chunks = [(b"IHDR", head)]
    if palette is not None:
        chunks.append((b"PLTE", palette.astype(np.uint8).tobytes()))
    if transparent is not None:
        kind = "B" if palette is not None else "H"
        chunks.append((b"tRNS", struct.pack(f">{len(transparent)}{kind}", *transparent)))
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def tiff(
    samples_HWC: np.ndarray,
    depth: int,
    photometric: int,
    order: str = "<",
    extra: Sequence[int] = (),
    palette: np.ndarray | None = None,
    orientation: int | None = None,
    pages: Sequence[int] = (0,),
) -> bytes:
    """An uncompressed TIFF file; all pages hold the same size, later ones are black.

    Args:
        samples_HWC: whole or floating-point numbers.
        depth: bits of a sample.
        photometric: 0 white is zero, 1 black is zero, 2 RGB, 3 palette, 5 CMYK, 6 YCbCr, 8 LAB.
        order: `<` or `>`.
        extra: kinds of the samples behind the colour: 0 unknown, 1 associated alpha, 2 alpha.
        palette: uint16 (2 ** depth, 3).
        orientation: as of EXIF.
        pages: the kind of each: 0 one of its own, 1 a smaller copy, 2 one of several, 4 a mask.
    """
    height, width, num_samples = samples_HWC.shape
    sample_format = {"u": 1, "i": 2, "f": 3}[samples_HWC.dtype.kind]
    body = b"".join(_packed_rows(samples_HWC, depth, order))
    file, next_at = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8), 8
    for page, kind in enumerate(pages):
        tags: dict[int, tuple[int, list[int]]] = {
            254: (_LONG, [kind]), 256: (_LONG, [width]), 257: (_LONG, [height]),
            258: (_SHORT, [depth] * num_samples),
            259: (_SHORT, [1]), 262: (_SHORT, [photometric]), 273: (_LONG, [0]),
            277: (_SHORT, [num_samples]), 278: (_LONG, [height]), 279: (_LONG, [len(body)]),
            339: (_SHORT, [sample_format] * num_samples),
        }  # fmt: skip
        if orientation is not None:
            tags[274] = (_SHORT, [orientation])
        if palette is not None:
            tags[320] = (_SHORT, palette.T.flatten().tolist())
        if extra:
            tags[338] = (_SHORT, list(extra))
        if photometric == 6:
            tags[530] = (_SHORT, [1, 1])

        # The directory, then values of more than four bytes, then the pixels.
        behind = next_at + 2 + 12 * len(tags) + 4
        entries, values = b"", b""
        for number, (size, numbers) in sorted(tags.items()):
            packed = struct.pack(f"{order}{len(numbers)}{_SIZES[size]}", *numbers)
            if number == 273:
                packed = b"\0\0\0\0"
            if len(packed) > 4:
                place = struct.pack(f"{order}I", behind + len(values))
                values += packed
            else:
                place = packed.ljust(4, b"\0")
            entries += struct.pack(f"{order}HHI", number, size, len(numbers)) + place
        pixels_at = behind + len(values)
        strip = struct.pack(f"{order}HHI", 273, _LONG, 1)
        entries = entries.replace(strip + b"\0\0\0\0", strip + struct.pack(f"{order}I", pixels_at))

        next_at = pixels_at + len(body) if page + 1 < len(pages) else 0
        pixels = body if page == 0 else bytes(len(body))
        file += struct.pack(f"{order}H", len(tags)) + entries
        file += struct.pack(f"{order}I", next_at) + values + pixels
    return file


def _packed_rows(samples_HWC: np.ndarray, depth: int, order: str) -> list[bytes]:
    """Each row as bytes; samples that fill no whole bytes share them, highest bit first."""
    if depth in (8, 16, 32):
        typed = samples_HWC.astype(f"{order}{samples_HWC.dtype.kind}{depth // 8}")
        return [row.tobytes() for row in typed]
    rows = samples_HWC.reshape(len(samples_HWC), -1).astype(np.uint16)
    bits = (rows[:, :, None] >> np.arange(depth - 1, -1, -1)) & 1
    return [np.packbits(row.flatten().astype(np.uint8)).tobytes() for row in bits]
