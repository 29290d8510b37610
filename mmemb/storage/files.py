"""Writes files, folders and links whole or not at all, and hashes files.

Everything is written under a temporary name beside its place, `.NAME.HOST-PID-RANDOM.tmp`, which no
two processes share and no reader opens; then it is brought to disk and renamed. It is removed if
the writing fails. Leftovers of a killed process are removed by the next process that writes into
the folder.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import platform
import re
import secrets
import shutil
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path

_HOST = f"{zlib.crc32(platform.node().encode()):08x}"
_TEMPORARY = re.compile(r"\..*\.(?P<host>[0-9a-f]{8})-(?P<pid>[0-9]+)-[0-9a-f]{8}\.tmp")
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST)


def write_atomically(path: Path | str, data: bytes) -> None:
    """Writes a file whole or not at all; makes its folder."""
    with whole_file(path) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def whole_file(path: Path | str) -> Iterator[Path]:
    """Yields the name of a file to write, which takes the place of `path` when the block has ended.

    Args:
        path: the file's final name; its folder is made. It does not change if the block raises.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)

    try:
        yield temporary
        # The bytes reach the disk before the name, or a crash could leave an empty file under it.
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def working_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder beside `path`, on its file system, and removes it after the block."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def whole_folder(
    folder: Path | str, keep_others: bool = False, replaced: Collection[str] = ()
) -> Iterator[Path]:
    """Yields an empty folder to fill, which takes the place of `folder` when the block has ended.

    So files that belong together never mix with older ones. The earlier folder is moved aside just
    before: a process that is killed between the two renames leaves no folder, which readers report
    as missing and the same command makes again.

    Args:
        folder: the final name. It does not change if the block raises.
        keep_others: keeps entries of the earlier folder whose names the new one lacks.
        replaced: names of entries that are not kept, as they belong to what is written.

    Raises:
        ValueError: the folder is a mount point or holds the working folder.
    """
    folder = Path(os.path.realpath(folder))
    if os.path.ismount(folder) or Path.cwd().is_relative_to(folder):
        raise ValueError(
            f"{folder} cannot be written whole, since it is mounted there or the working folder: "
            "name a folder below it."
        )

    with working_folder(folder) as temporary:
        yield temporary
        if keep_others and folder.is_dir():
            _take_over(folder, temporary, replaced)

        # Content reaches the disk before the name, so that a crash leaves no half-filled folder.
        for path in temporary.rglob("*"):
            if not path.is_symlink():
                sync(path)
        sync(temporary)
        _rename_folder(temporary, folder)
        sync(folder.parent)


def sync(path: Path) -> None:
    """Brings a file's content, or a folder's entries, to disk; only then is a rename durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def link_atomically(link: Path, target: Path) -> None:
    """Points `link` at `target`, beside or below it, in one step.

    The link is relative, so that the folder of both may be moved.
    """
    temporary = _temporary(link)
    try:
        temporary.symlink_to(target.relative_to(link.parent))
        os.replace(temporary, link)
        sync(link.parent)
    finally:
        temporary.unlink(missing_ok=True)


def is_temporary(path: Path) -> bool:
    """Tells whether a file or folder has a temporary name: it is unfinished or a leftover.

    >>> is_temporary(Path("out/.table.json.0a1b2c3d-17-4e5f6071.tmp")), is_temporary(Path("a.tmp"))
    (True, False)
    """
    return _TEMPORARY.fullmatch(path.name) is not None


def file_sha256(path: Path) -> str:
    """Returns the SHA-256 (hex) of a file, which is read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _temporary(path: Path) -> Path:
    """Returns a name beside `path` that no other process uses; removes leftovers there."""
    _remove_leftovers(path.parent)
    process = f"{_HOST}-{os.getpid()}-{secrets.token_hex(4)}"
    return path.with_name(f".{path.name[:100]}.{process}.tmp")


@functools.cache  # once a process: a folder may hold very many files
def _remove_leftovers(folder: Path) -> None:
    """Removes temporary files and folders that dead processes of this machine left."""
    for path in folder.glob(".*.tmp"):
        # Others may share the folder, and a process id of another machine means nothing here.
        match = _TEMPORARY.fullmatch(path.name)
        if match is None or match["host"] != _HOST or _is_alive(int(match["pid"])):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        # Signal 0 is not sent; the call only checks that the process exists.
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def _take_over(old: Path, new: Path, replaced: Collection[str]) -> None:
    """Gives a new folder the entries of the old one that it lacks; the old one keeps them."""
    for entry in old.iterdir():
        # Temporary files of dead or running processes are no content.
        place = new / entry.name
        if os.path.lexists(place) or is_temporary(entry) or entry.name in replaced:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, place, symlinks=True, copy_function=_link_or_copy)
        else:
            _link_or_copy(entry, place)


def _link_or_copy(source: Path | str, place: Path | str) -> None:
    try:
        os.link(source, place, follow_symlinks=False)
    except OSError:  # a file system without hard links
        shutil.copy2(source, place, follow_symlinks=False)


def _rename_folder(new: Path, folder: Path) -> None:
    """Renames over an earlier folder, which a rename alone does not do unless it is empty."""
    while True:
        try:
            os.rename(new, folder)
            return
        except OSError as error:
            if error.errno not in _TAKEN:
                raise

        # The earlier folder moves aside, and comes back if the new one cannot take its place.
        aside = _temporary(folder)
        with contextlib.suppress(FileNotFoundError):  # another process moved it first
            os.rename(folder, aside)
        try:
            os.rename(new, folder)
        except OSError as error:
            if error.errno in _TAKEN:
                shutil.rmtree(aside, ignore_errors=True)
                continue
            os.rename(aside, folder)
            raise
        shutil.rmtree(aside, ignore_errors=True)
        return


def file_identity(path: Path) -> tuple[int, int, int, int]:
    """Returns inode, size, modification time and change time, equal while a file is unchanged.

    A replaced file has another inode or another change time. Its size and modification time may be
    those of the old one: `unzip`, `rsync -t` and archives with fixed times set them.
    """
    status = path.stat()
    return status.st_ino, *file_state(status)


def file_state(status: os.stat_result) -> tuple[int, int, int]:
    """Returns size and times of a file, to be compared before and after it is read.

    Writing, copying and replacing set the change time, and no program can set it back. The inode
    is left out here: its number is not stable on some network mounts.
    """
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns
