"""Frames of a clip that was saved as pictures: the order of their files, and the choice."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path

import numpy as np

from mmemb.media.pictures import PICTURES
from mmemb.records.text import printable


def choose_frames(count: int, wanted: int | None) -> list[int]:
    """Chooses frames of `count` saved ones: evenly spaced, rounded down; all if they are few.

    >>> choose_frames(64, 8)
    [0, 9, 18, 27, 36, 45, 54, 63]
    >>> choose_frames(3, 8)
    [0, 1, 2]
    """
    if wanted is None or count < wanted:
        return list(range(count))
    return np.linspace(0, count - 1, wanted, dtype=int).tolist()


def frame_files(folder: Path, num: int) -> list[Path]:
    """The chosen pictures of a folder, in natural order.

    Raises:
        ValueError: it has none.
    """
    # `natural_order` makes frame10 follow frame9, as cameras and FFmpeg do not always pad numbers.
    files = sorted((p for p in folder.iterdir() if is_frame(p.name, PICTURES)), key=natural_order)
    if not files:
        raise ValueError(f"{printable(folder.name)} is a folder without pictures")
    return [files[place] for place in choose_frames(len(files), num)]


def check_sizes(clip: str, files: Collection[str], sizes: Collection[tuple[int, int]]) -> None:
    """Refuses frames of several sizes: models that read clips squeeze them into the first one's.

    Args:
        clip: its name.
        files: names of the frames.
        sizes: width and height of each.

    Raises:
        ValueError: names the first frame and one that differs from it.
    """
    # The first frame is the reference, so the message names one file that differs from it.
    named = list(zip(files, sizes, strict=True))
    for file, size in named:
        if size != (first := named[0][1]):
            raise ValueError(
                f"{clip}: {printable(file)} has {size[0]} x {size[1]} pixels, "
                f"{printable(named[0][0])} {first[0]} x {first[1]}: expected one size of a clip's "
                "frames; pictures of several sizes are listed one by one"
            )


def is_frame(name: str, suffixes: Collection[str]) -> bool:
    """Tells a picture by its suffix; what macOS adds to a file (`._f0.png`) is none."""
    return os.path.splitext(name)[1].lower() in suffixes and not name.startswith("._")


def natural_order(path: Path) -> list[tuple[int, str]]:
    """Key that sorts `frame2` before `frame10`."""
    parts = [part for part in re.split(r"(\d+)", path.name) if part]
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
