"""Folders of runs and reports: each has its own name, and files of the newest change together."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable
from pathlib import Path

from mmemb.storage.files import link_atomically


def new_folder(parent: Path, name: str) -> Path:
    """Makes `parent/name`, or `name-2`, `name-3` ... where another one has the name already."""
    parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        # `mkdir` decides: of two processes that want one name, one gets it.
        folder = parent / (name if number == 1 else f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder
    raise AssertionError("unreachable")


def publish(folder: Path, link: Path, names: Iterable[str]) -> None:
    """Shows files of `folder` beside `link`, which all change in one step.

    Each name is a link through `link`, made once: `report.html` points at `report/report.html`, and
    only `report` moves.

    Args:
        folder: holds the files; beside `link`.
        link: e.g. `runs/pocket/report`.
        names: of the files.
    """
    for name in names:
        # First: until `link` stands, they point at nothing, which no reader takes for a file.
        if not _passes_through(link.parent / name, link):
            link_atomically(link.parent / name, link / name)
    link_atomically(link, folder)


def is_published(link: Path, names: Iterable[str]) -> bool:
    """True if all of the names exist and are links through `link`, so that they agree."""
    paths = [link.parent / name for name in names]
    return all(path.is_file() and _passes_through(path, link) for path in paths)


def _passes_through(path: Path, link: Path) -> bool:
    return path.is_symlink() and path.readlink() == Path(link.name, path.name)
