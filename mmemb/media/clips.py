"""Frames of clips: videos and animated pictures, upright, evenly spaced in time, bounded.

A clip is refused rather than shortened: a file that was cut, frames that end long before the stated
end, frames of changing size, and a file without moving pictures are errors that say so.
"""

from __future__ import annotations

import io
import os
import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, final

from mmemb.media.containers import HEAD, stated_size
from mmemb.media.libraries import require_library
from mmemb.media.pictures import to_rgb, without_pillow_warnings
from mmemb.records.text import printable

if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.container import InputContainer
    from PIL.Image import Image as Picture
    from PIL.Image import Transpose

VIDEOS = {".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".ts"}
CLIPS = {*VIDEOS, ".gif"}
"""Suffixes of files that are looked at as clips."""

ANIMATED = ("GIF", "WEBP", "PNG")
"""Formats of pictures that may move; one that does counts as a clip."""

MAX_FRAMES = 216_000
"""Most frames of a clip: two hours at 30 a second."""

MAX_FRAME_PIXELS = 16_000_000
"""Most pixels of a frame: an action camera's 5.3K, which takes 0.4 GB to decode and write."""

MAX_CLIP_PIXELS = 500_000_000_000
"""Most pixels of all frames of a clip: two hours of full HD at 30 a second."""

_OPENED = {
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts",
    "protocol_whitelist": "file",
}
"""The bytes of a file decide, not its name: a playlist called `.mp4` would open other files."""

_TURNS = {
    (1, 0, 0, 1): None,
    (0, 1, -1, 0): "ROTATE_270",  # a phone held upright
    (-1, 0, 0, -1): "ROTATE_180",
    (0, -1, 1, 0): "ROTATE_90",
    (-1, 0, 0, 1): "FLIP_LEFT_RIGHT",
    (1, 0, 0, -1): "FLIP_TOP_BOTTOM",
    (0, 1, 1, 0): "TRANSPOSE",
    (0, -1, -1, 0): "TRANSVERSE",
}
"""Signs of a, b, c, d of a display matrix -> Pillow's name of the turn that makes the frame
upright; Pillow turns to the left."""


@final
class ClipError(ValueError):
    """A fault of a clip; the message does not name it."""


def read_clip(source: Path | bytes, num: int, where: str = "") -> list[Picture]:
    """RGB frames of a video or an animated picture, see `nearest_frames`.

    Args:
        source: the file, or its bytes.
        num: of frames, at least 1.
        where: names the clip in errors; by default the name of the file.

    Raises:
        ValueError: names the clip: it is none of these, cut, damaged, has no moving picture, or is
            beyond the bounds of this module.
        ModuleNotFoundError: the library that reads clips is not installed.
    """
    named = source.name if isinstance(source, Path) else "The clip"
    name = printable(where or named)
    try:
        _check_size(source)
        return _animation(source, num) if _is_picture(source) else _video(source, num)
    except ClipError as error:
        raise ValueError(f"{name} {error}.") from None
    except ImportError:
        raise  # a library that is not installed is no fault of the file
    except Exception as error:  # decoders raise whatever the bytes make them raise
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise ValueError(f"{name} cannot be decoded ({reason}).") from None


def nearest_frames(times: Sequence[int], num: int) -> list[int]:
    """Returns the numbers of the frames that are nearest in time to `num` evenly spaced times.

    The first of these times is the first frame's, the last one the last frame's; of two frames that
    are equally near the earlier one is taken. A frame that stands for long may be taken more than
    once. All frames are taken if there are no more than `num`. Where times do not rise from frame
    to frame, all frames count as equally long.

    Args:
        times: of the frames, in a unit of the clip's own.
        num: at least 1.

    >>> nearest_frames([0, 40, 80, 120, 160], 3), nearest_frames([0, 10, 20, 30, 400], 3)
    ([0, 2, 4], [0, 3, 4])
    """
    if len(times) <= num:
        return list(range(len(times)))
    # Broken writers repeat or reverse times; bisection needs rising ones.
    if any(one >= two for one, two in pairwise(times)):
        times = range(len(times))

    # Whole numbers alone, so that nothing depends on rounding: all times are multiplied by `steps`.
    steps, first, last = max(1, num - 1), times[0], times[-1]

    numbers = []
    for step in range(num):
        wanted = first * steps + (last - first) * step
        after = bisect_right(times, wanted, key=lambda time: time * steps)
        # Behind the last frame there is nothing to compare with.
        if after == len(times):
            numbers.append(after - 1)
        else:
            is_nearer = times[after] * steps - wanted < wanted - times[after - 1] * steps
            numbers.append(after if is_nearer else after - 1)

    return numbers


def is_animated(source: Path | bytes) -> bool:
    """Tells whether a picture has several frames; False for one that cannot be read."""
    from PIL import Image

    try:
        with (
            without_pillow_warnings(),
            _file(source) as file,
            Image.open(file, formats=ANIMATED) as image,
        ):
            return bool(getattr(image, "is_animated", False))
    except Exception:  # the reader of pictures says what is wrong
        return False


def head_of(source: Path | bytes) -> bytes:
    """Returns the first bytes of a file, which tell its kind."""
    with _file(source) as file:
        return file.read(HEAD)


@final
@dataclass(slots=True)
class _Count:
    """Size and times of the frames decoded so far, checked against the bounds of this module."""

    size: tuple[int, int] = (0, 0)
    times: list[int] = field(default_factory=list)

    def add(self, size: tuple[int, int], time: int) -> None:
        """Counts a frame and checks it."""
        # The first frame sets the size; all others must have it.
        self.size = self.size if self.times else size
        if size != self.size:
            (width, height), (now_wide, now_high) = self.size, size
            number = len(self.times)
            raise ClipError(
                f"changes its size from {width} x {height} to {now_wide} x {now_high} pixels at "
                f"frame {number}; expected one size"
            )

        # Checked while counting, so that an endless clip stops at the bound.
        self.times.append(time)
        check_bounds(size, len(self.times))


def check_bounds(size: tuple[int, int], frames: int) -> None:
    """Raises ClipError if a frame, their number or both together are more than is decoded."""
    pixels = size[0] * size[1]
    if pixels > MAX_FRAME_PIXELS:
        raise ClipError(
            f"has frames of {size[0]} x {size[1]} pixels; at most {MAX_FRAME_PIXELS:,} are read"
        )

    if frames > MAX_FRAMES or frames * pixels > MAX_CLIP_PIXELS:
        raise ClipError(
            f"is too long: at most {MAX_FRAMES:,} frames and {MAX_CLIP_PIXELS:,} pixels of all "
            "frames together are read; cut it, or give a folder of frames"
        )


def _file(source: Path | bytes) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")


def _is_picture(source: Path | bytes) -> bool:
    """Tells a picture by its bytes: many files called `.gif` are videos, and the reverse."""
    head = head_of(source)
    return head[:4] in (b"GIF8", b"\x89PNG") or (head[:4], head[8:12]) == (b"RIFF", b"WEBP")


def _check_size(source: Path | bytes) -> None:
    with _file(source) as file:
        stated, actual = stated_size(file), file.seek(0, os.SEEK_END)
    if stated is not None and actual < stated:
        raise ClipError(f"is cut: it has {actual} bytes and states {stated}; fetch it again")


def _video(source: Path | bytes, num: int) -> list[Picture]:
    """Reads frames in two passes: the first finds all times, the second keeps the chosen ones."""
    chosen = nearest_frames(_times(source), num)
    frames = {}
    with _opened(source) as (video, stream):
        for number, frame in enumerate(video.decode(stream)):
            if number in chosen:
                frames[number] = _upright(frame, stream.sample_aspect_ratio)
            # The rest of the file need not be decoded.
            if number == chosen[-1]:
                break

    return [frames[number] for number in chosen]


def _times(source: Path | bytes) -> list[int]:
    """Times of all frames in units of the stream, or their numbers if it gives no times."""
    seen, end, is_timed = _Count(), 0, True
    with _opened(source) as (video, stream):
        others = 0.0
        for packet in video.demux():
            # Sound and subtitles are not decoded; only their end counts, for the check below.
            if packet.stream.index != stream.index:
                others = max(others, _end_of(packet))
                continue

            for frame in packet.decode():
                is_timed = is_timed and frame.pts is not None
                seen.add((frame.width, frame.height), frame.pts if is_timed else len(seen.times))
                end = seen.times[-1] + (frame.duration or 0)

        if not seen.times:
            raise ClipError("holds no frame")
        if not is_timed:
            return list(range(len(seen.times)))

        # The stream's own length counts; that of a whole file, in which the sound may be longer,
        # is compared with the end of all streams. Matroska states no other: FFmpeg guesses.
        unit = float(stream.time_base)
        if stream.duration is not None and "matroska" not in video.format.name:
            _check_end(seen.times, end, stream.duration, unit)
        elif video.duration is not None:
            end = max(end, round(others / unit))
            _check_end(seen.times, end, video.duration / 1e6 / unit, unit)

    return seen.times


def _end_of(packet: Packet) -> float:
    """When a packet of sound or text ends, in seconds."""
    if packet.pts is None:
        return 0.0
    return float((packet.pts + (packet.duration or 0)) * packet.time_base)


def _check_end(times: Sequence[int], end: int, stated: float, unit: float) -> None:
    """Compares the last frame with a stated length, in units of `unit` seconds.

    A tenth may be missing, and two frames: encoders round, and drop the last ones.
    """
    # The longest pause between two frames is the best guess of how long the last one lasts.
    gap = max((two - one for one, two in pairwise(times)), default=0)
    reached = max(end, end - times[0])

    if reached + 2 * gap < 0.9 * stated:
        raise ClipError(
            f"is cut: its frames end after {reached * unit:.1f} s, it states {stated * unit:.1f} s"
        )


@contextmanager
def _opened(source: Path | bytes) -> Iterator[tuple[InputContainer, Any]]:
    """A video and its moving picture."""
    require_library("av", "Reading clips")
    import av
    from av.stream import Disposition

    file = io.BytesIO(source) if isinstance(source, bytes) else str(source)
    # A title in an old encoding must not stop the reader: texts in the file are not used.
    with av.open(file, options=_OPENED, metadata_errors="replace") as video:
        pictures = video.streams.video
        streams = [s for s in pictures if not s.disposition & Disposition.attached_pic]
        if not streams:
            what = "sound" if video.streams.audio else "other data"
            also = " and a picture as its cover" if pictures else ""
            raise ClipError(f"holds no video, but {what}{also}")

        stream = next((s for s in streams if s.disposition & Disposition.default), streams[0])

        if stream.codec_context is None:
            raise ClipError("is stored in a way that nothing here decodes; convert it to H.264")

        # Frames may be larger than the file's head says, so the decoder gets a bound, too: twice
        # ours, as it counts margins of the frame.
        check_bounds((stream.width, stream.height), 1)
        stream.codec_context.options = {"max_pixels": str(2 * MAX_FRAME_PIXELS)}
        stream.codec_context.thread_count = 1  # clips are decoded by several processes already
        yield video, stream


def _upright(frame: VideoFrame, aspect: Any) -> Picture:
    """A frame as it is to be looked at: on white, with square pixels, turned and mirrored."""
    from PIL import Image

    if frame.is_corrupt:
        raise ClipError(f"is damaged in its frame at {frame.time or 0:.1f} s")

    if any(component.is_alpha for component in frame.format.components):
        image = to_rgb(Image.fromarray(frame.to_ndarray(format="rgba"), "RGBA"))
    else:
        image = frame.to_image()

    # Anamorphic video stores pixels that are not square; models expect square ones.
    if aspect and aspect != 1:
        wide = max(1, round(image.width * aspect))
        # The stated aspect is not trusted: it could ask for a picture of any width.
        check_bounds((wide, image.height), 1)
        image = image.resize((wide, image.height), Image.Resampling.BICUBIC)

    matrices = (bytes(data) for data in frame.side_data if data.type.name == "DISPLAYMATRIX")
    turn = turn_of(next(matrices, b""))
    return image if turn is None else image.transpose(turn)


def turn_of(matrix: bytes) -> Transpose | None:
    """Returns the transposition that makes a frame with this display matrix upright; None = none.

    Args:
        matrix: nine 32-bit whole numbers a b u c d v x y w, by which a pixel at (x, y) is shown at
            (a x + c y, b x + d y); scale and place do not count. Empty = there is none.

    Raises:
        ClipError: it turns by other than multiples of 90 degrees.
    """
    from PIL import Image

    if not matrix:
        return None

    a, b, _, c, d, *_ = struct.unpack("=9i", matrix[:36])
    straight, crossed = abs(a) + abs(d), abs(b) + abs(c)
    if not straight and not crossed:  # players ignore it, too
        return None

    # Rounding leaves small entries beside the large ones; below a hundredth they count as zero.
    if straight > 100 * crossed:
        b = c = 0
    elif crossed > 100 * straight:
        a = d = 0

    signs = tuple((value > 0) - (value < 0) for value in (a, b, c, d))
    if signs not in _TURNS:
        raise ClipError("is turned by an angle that is no multiple of 90 degrees")

    name = _TURNS[signs]
    return None if name is None else Image.Transpose[name]


def _animation(source: Path | bytes, num: int) -> list[Picture]:
    """Returns frames of a GIF, WebP or PNG; each has a length in milliseconds."""
    from PIL import Image

    with _file(source) as file:
        data, seen, start = file.read(), _Count(), 0
    with without_pillow_warnings(), Image.open(io.BytesIO(data), formats=ANIMATED) as image:
        # Before `n_frames`, which may read the whole file.
        check_bounds(image.size, 1)
        frames = getattr(image, "n_frames", 1)
        check_bounds(image.size, frames)

        # The picture that a PNG holds for viewers which show no animation is no part of it.
        first = int(getattr(image, "default_image", False))
        for number in range(first, frames):
            image.seek(number)
            seen.add(image.size, start)  # before it is decoded: a GIF's frame may exceed the GIF
            image.load()
            start += round(image.info.get("duration", 0))

    # A GIF's frames depend on the ones before, so the chosen ones are decoded in order.
    chosen = [first + number for number in nearest_frames(seen.times, num)]
    with without_pillow_warnings(), Image.open(io.BytesIO(data), formats=ANIMATED) as image:
        images = {}
        for number in sorted(set(chosen)):
            image.seek(number)
            images[number] = to_rgb(image).copy()
    return [images[number] for number in chosen]
