"""Files and links that change whole or not at all, and the hash of a file; knows no format."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def write_atomically(path: Path | str, data: bytes) -> None:
    """Writes a file whole or not at all (temporary file, fsync, rename); makes its folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Brings the folder's entries to disk: only then is a rename in it durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def link_atomically(link: Path, target: Path) -> None:
    """Points `link` at `target`, beside or below it, in one step: a reader sees the old or the new.

    The link is relative, so that the folder of both may be moved.
    """
    fresh = link.with_name(f".{link.name}.new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target.relative_to(link.parent))
    fresh.replace(link)


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
