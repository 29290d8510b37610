"""FileHashes: the SHA-256 of many files, read again only where a file may have changed."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, final

from mmemb.files import file_identity, file_sha256, write_atomically

_CLOCK_TICK_NS = 2_000_000_000
"""Longest step of a file system's clock: two writes within one step leave equal times."""


@final
class FileHashes:
    """Hashes files, and remembers them as long as they are the same on disk.

    Args:
        memory: JSON file of what was hashed earlier; it need not exist.
        recheck: reads every file again.
    """

    def __init__(self, memory: Path, recheck: bool = False) -> None:
        self._memory = memory
        self._known: dict[str, Any] = {} if recheck else _read(memory)
        self._used: dict[str, list[Any]] = {}
        self._started = time.time_ns()

    def sha256(self, path: Path) -> str:
        """The hash (hex) of a file's bytes."""
        name = str(path)
        if name in self._used:
            return self._used[name][0]

        # The identity comes first: a file that changes while it is read is read again next time.
        identity = list(file_identity(path))
        known = self._known.get(name)
        same = isinstance(known, list) and known[1:] == identity
        self._used[name] = known if same else [file_sha256(path), *identity]
        return self._used[name][0]

    def save(self) -> None:
        """Remembers the files that were asked for, but those that have only just changed."""
        newest = self._started - _CLOCK_TICK_NS
        settled = {name: row for name, row in self._used.items() if row[-1] < newest}
        if settled != self._known:
            write_atomically(self._memory, json.dumps(settled, indent=0).encode())


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}  # nothing is lost: the files are read again
    return data if isinstance(data, dict) else {}
