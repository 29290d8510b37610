"""Tells in one sentence that a media folder is not the one that the paths of a table start from."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath

from datamodules.prepare.cells import shown
from datamodules.prepare.folder.containers import find_contained
from datamodules.prepare.folder.table import OwnRow
from datamodules.prepare.media_paths import MediaPathError, find_media

_MOST_TRIED = 50
"""Paths of the table that are looked for, evenly spread: a download may miss its first files."""

_MOST_FOLDERS = 1000
"""Folders that are looked at for one that fits."""


def check_folder(media: Path, rows: Sequence[OwnRow]) -> None:
    """Refuses a folder below which none of the paths of a table lies.

    Args:
        media: the folder.
        rows: of the table; rows with faults do not count.

    Raises:
        FileNotFoundError: the folder does not fit; names the nearest one that does, if there is
            any.
    """
    whole = (row for row in rows if not row.faults)
    names = list(dict.fromkeys(name for row in whole for side in row.sides for name in side.media))
    tried = names[:: -(-len(names) // _MOST_TRIED) or 1]
    if not tried or _num_found(media, tried):
        return

    if all(PurePosixPath(name).is_absolute() for name in tried):
        raise FileNotFoundError(
            f"The table names its media by absolute paths, such as {shown(tried[0])}: expected "
            "paths below a folder, which --media names."
        )

    found = {folder: _num_found(folder, tried) for folder in _near(media, tried[0])}
    best = max(found, key=lambda folder: found[folder], default=media)
    hint = f" They are below {best}: give --media {best}." if found.get(best) else ""
    raise FileNotFoundError(
        f"None of the table's media, such as {shown(tried[0])}, is below --media {media}: expected "
        f"the folder that paths of the table start from.{hint}"
    )


def _num_found(folder: Path, names: Sequence[str]) -> int:
    return sum(not _is_missing(folder, name) for name in names)


def _is_missing(folder: Path, name: str) -> bool:
    """Tells whether nothing is there. A link, a pipe or a path with `..` has a fault of its own."""
    path = PurePosixPath(name)
    # Such paths are not even looked at.
    if path.is_absolute() or ".." in path.parts:
        return path.is_absolute()

    # A path may go on inside of a tar, which has no such path on disk.
    if find_contained(folder, name) is not None:
        return False

    try:
        find_media(folder, name)
    except MediaPathError:
        try:
            os.lstat(folder / name)
        except (FileNotFoundError, NotADirectoryError):
            return True
        except (OSError, ValueError):
            return False
    return False


def _near(media: Path, name: str) -> Iterator[Path]:
    """Yields folders that may be meant: those around the folder, then those inside of it."""
    here = media.resolve()
    around = [here.parent, *here.parents[1:3]]
    yield from around
    yield from islice(_subfolders(here), _MOST_FOLDERS)
    yield from islice(_subfolders(here.parent, depth=1), _MOST_FOLDERS)


def _subfolders(folder: Path, depth: int = 3) -> Iterator[Path]:
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError:
        return

    for name in names:
        yield folder / name
    if depth > 1:
        for name in names:
            yield from _subfolders(folder / name, depth - 1)
