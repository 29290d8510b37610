"""Fingerprints of inputs and settings: they tell what a result comes from.

A folder with a `manifest.json` (shards) or a `fingerprint.json` (a run) is an *input*: whatever
configuration names one inherits its fingerprint, so a changed input changes everything after it. A
file, and a folder without such a mark (a model from elsewhere), counts by its bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmemb.records.schema import read_json
from mmemb.storage.file_hashes import file_content
from mmemb.storage.files import file_identity
from mmemb.storage.json_files import canonical_json
from mmemb.storage.manifests import MANIFEST
from mmemb.storage.run_folder import MARK
from mmemb.storage.run_marks import MarkJson

FORMAT_VERSION = 1
"""Raised when the meaning of a stage's output changes, so that old outputs are made again."""

MOST_FILES = 10_000
"""A folder without a mark counts by its files' bytes if it holds no more files."""

_MARKS = (MANIFEST, MARK)


def fingerprint(
    settings: Any, outputs: Collection[Path] = (), find: Callable[[str], Path] = Path
) -> str:
    """A hash (16 hex digits) of settings and of every input that they name.

    Strings that are paths count with the content behind them: shards and runs with their own
    fingerprint, ordinary files (a prompt, a table of facts) with their bytes.

    Args:
        settings: plain data.
        outputs: what the run itself will write: it counts by name alone, or a finished run would
            never again have the fingerprint that it started with.
        find: gives the place of an input that settings name.
    """
    paths = sorted(set(named_paths(settings, outputs, find)))
    inputs = {path: _identity(find(path)) for path in paths}
    return _hash([FORMAT_VERSION, settings, inputs])


def input_identities(
    settings: Any, outputs: Collection[Path] = (), find: Callable[[str], Path] = Path
) -> dict[str, str]:
    """Path -> a hash of what lies there, for every input that settings name; see `fingerprint`."""
    paths = sorted(set(named_paths(settings, outputs, find)))
    return {path: _hash(_identity(find(path))) for path in paths}


def _hash(data: Any) -> str:
    return hashlib.sha256(canonical_json(data).encode()).hexdigest()[:16]


def named_paths(
    settings: Any, outputs: Collection[Path], find: Callable[[str], Path] = Path
) -> Iterator[str]:
    if isinstance(settings, Mapping):
        for value in settings.values():
            yield from named_paths(value, outputs, find)
    elif isinstance(settings, list | tuple):
        for value in settings:
            yield from named_paths(value, outputs, find)
    elif isinstance(settings, str) and settings and _is_there(settings, find):
        path = Path(settings).absolute()
        # Outputs count by name alone: they change while the run writes them.
        if not any(path.is_relative_to(output.absolute()) for output in outputs):
            yield settings


def _is_there(name: str, find: Callable[[str], Path]) -> bool:
    try:
        return find(name).exists()
    except OSError:  # a text too long for a name, such as that of several callbacks
        return False


def _identity(path: Path) -> str:
    """The content of a path: a mark in it or in folders of shards below, or the bytes of files."""
    if path.is_file():
        return file_content(path)

    # Resolved: the mark lies above the run that a link names, not above the link.
    mark = marked_parent(path.resolve(), _MARKS)
    if mark is not None:
        return _mark_identity(mark)

    below = sorted(path.glob(f"*/{MANIFEST}")) + sorted(path.glob(f"*/*/{MANIFEST}"))
    if below or any(path.glob(f"*/{MARK}")) or any(path.glob(f"*/*/{MARK}")):
        return canonical_json([_mark_identity(mark) for mark in below])
    return _folder_content(path)


def _folder_content(folder: Path) -> str:
    """The bytes of all files in a folder that no run or stage has marked, such as a model's.

    Hidden names do not count. A folder of more than `MOST_FILES` files, which no model is, counts
    by their names, sizes and times.
    """
    files = sorted(
        path
        for path in folder.rglob("*")
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )

    if len(files) > MOST_FILES:
        return canonical_json([[str(path), *file_identity(path)] for path in files])
    return canonical_json([[str(path.relative_to(folder)), file_content(path)] for path in files])


def _mark_identity(mark: Path) -> str:
    data = read_json(mark, MarkJson)
    return canonical_json([data.fingerprint, data.shards])


def marked_parent(path: Path, names: tuple[str, ...]) -> Path | None:
    """The first of `names` in the folder or up to three folders above it."""
    # A run keeps its weights in folders below its mark.
    for folder in [path, *path.parents][:4]:
        for name in names:
            if (folder / name).is_file():
                return folder / name
    return None
