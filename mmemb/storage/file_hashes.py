"""FileHashes: the SHA-256 of many files, read again only where a file may have changed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path
from typing import final

from mmemb.records.schema import Sha256, read_json
from mmemb.storage.files import file_identity, file_sha256, write_atomically

_CLOCK_TICK_NS = 2_000_000_000
"""Longest step of a file system's clock: two writes within one step leave equal times."""

LARGE_BYTES = 16 * 2**20
"""`file_content` keeps the hashes of files from this size on."""


_Row = tuple[Sha256, int, int, int, int]
"""The hash of a file, and its identity."""


@final
class FileHashes:
    """Hashes files, and keeps the hashes as long as the files are the same on disk.

    Args:
        memory: JSON file of earlier hashes; it need not exist.
        recheck: reads every file again.
    """

    def __init__(self, memory: Path, recheck: bool = False) -> None:
        self._memory = memory
        self._known: dict[str, _Row] = {} if recheck else _read(memory)
        self._used: dict[str, _Row] = {}
        self._started = time.time_ns()

    def sha256(self, path: Path) -> str:
        """The hash (hex) of a file's bytes."""
        name = str(path)
        if name in self._used:
            return self._used[name][0]

        # The identity comes first: a file that changes while it is read is read again next time.
        identity = file_identity(path)
        row = self._known.get(name)
        is_same = row is not None and row[1:] == identity
        self._used[name] = row if is_same else (file_sha256(path), *identity)
        return self._used[name][0]

    def save(self) -> None:
        """Writes the hashes that were used, except of files that have only just changed."""
        # A file that changes twice within one step of the clock may keep its identity.
        newest = self._started - _CLOCK_TICK_NS
        settled = {name: row for name, row in self._used.items() if row[-1] < newest}
        if settled != self._known:
            write_atomically(self._memory, json.dumps(settled, indent=0, allow_nan=False).encode())


def file_content(path: Path) -> str:
    """The SHA-256 (hex) of a file that every start needs.

    A large file is read once: the user's cache (`$XDG_CACHE_HOME/mmemb`, else `~/.cache/mmemb`)
    keeps its hash for as long as the file is the same on disk.
    """
    if path.stat().st_size < LARGE_BYTES:
        return file_sha256(path)

    path = path.resolve()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = hashlib.sha256(str(path).encode()).hexdigest()[:32]
    hashes = FileHashes(cache / "mmemb" / "hashes" / f"{name}.json")
    sha256 = hashes.sha256(path)
    with contextlib.suppress(OSError):  # a home that cannot be written: read again next time
        hashes.save()
    return sha256


def _read(path: Path) -> dict[str, _Row]:
    try:
        return read_json(path, dict[str, _Row])
    except (OSError, ValueError):
        return {}  # nothing is lost: the files are read again
