"""Tiny clips made on the fly: any container, times of frames, sound, display matrix."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, final

import av
import numpy as np

SIZE = (48, 32)
EVEN = tuple(range(0, 2000, 100))
"""Times in milliseconds: 20 frames, 10 a second."""

MATRIX = {"identity": (1, 0, 0, 1), "phone": (0, 1, -1, 0)}


def grey(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Frames that grow brighter, so that their order can be seen."""
    return np.full((size[1], size[0], 3), 10 + 10 * number, np.uint8)


def write_video(
    path: Path,
    times: Sequence[int] = EVEN,
    *,
    codec: str = "libx264",
    pictures: Sequence[np.ndarray] | None = None,
    pixels: str = "yuv420p",
    seconds_of_sound: float = 0.0,
    aspect: Fraction | None = None,
    options: Mapping[str, str] | None = None,
    target: Any = None,
) -> Path:
    """One video.

    Args:
        path: its suffix decides the container.
        times: of the frames, in milliseconds.
        codec: of the pictures.
        pictures: (H, W, 3) or (H, W, 4) of each frame; None = `grey`.
        pixels: as the codec stores them.
        seconds_of_sound: of silence beside them.
        aspect: width of a pixel by its height.
        options: of the container.
        target: written to instead of the path, which then names the container alone.
    """
    frames = pictures or [grey(number) for number in range(len(times))]
    kind = {".mkv": "matroska", ".ts": "mpegts"}.get(path.suffix, path.suffix[1:])
    with av.open(target or str(path), "w", format=kind, options=dict(options or {})) as video:
        stream = video.add_stream(codec, rate=10)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels
        stream.codec_context.time_base = Fraction(1, 1000)
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        sound = video.add_stream("aac", rate=48000) if seconds_of_sound else None

        for time, pixel_HWC in zip(times, frames, strict=True):
            layout = "rgba" if pixel_HWC.shape[2] == 4 else "rgb24"
            frame = av.VideoFrame.from_ndarray(pixel_HWC, format=layout)
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            video.mux(stream.encode(frame))
        video.mux(stream.encode())
        if sound is not None:
            _write_silence(video, sound, seconds_of_sound)
    return path


def write_sound(path: Path, cover: bool = False) -> Path:
    """Sound alone, or with a picture as its cover."""
    with av.open(str(path), "w") as file:
        sound = file.add_stream("aac", rate=48000)
        if cover:
            stream = file.add_stream("mjpeg", rate=1)
            stream.height, stream.width, stream.pix_fmt = 32, 32, "yuvj420p"
            stream.disposition = av.stream.Disposition.attached_pic
            frame = av.VideoFrame.from_ndarray(grey(9, (32, 32)), format="rgb24")
            frame.pts = 0
            file.mux([*stream.encode(frame), *stream.encode()])
        _write_silence(file, sound, 0.5)
    return path


def turned(path: Path, matrix: Sequence[int], scale: int = 1 << 16) -> Path:
    """Puts a, b, c, d into the display matrix of an MP4 file's track."""
    data, (a, b, c, d) = bytearray(path.read_bytes()), (scale * value for value in matrix)
    at = data.index(b"tkhd") + 4 + 40
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def shortened(path: Path, first: int, num: int) -> Path:
    """Lets the edit list of an MP4 file of `EVEN` times show `num` frames from the `first` on."""
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 12
    start = struct.unpack(">i", data[at + 4 : at + 8])[0] + first * 1600
    data[at : at + 8] = struct.pack(">Ii", 100 * num, start)
    path.write_bytes(data)
    return path


@final
class Pipe:
    """A file in which nothing can be written again, so that no length comes into its head."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, data: bytes) -> int:
        """Appends."""
        return self._file.write(data)


def _write_silence(file: Any, sound: Any, seconds: float) -> None:
    for number in range(round(seconds * 50)):
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 960), np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate, frame.pts = 48000, 960 * number
        file.mux(sound.encode(frame))
    file.mux(sound.encode())
