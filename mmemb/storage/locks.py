"""FolderLock: one process writes a folder.

These are POSIX locks: the system voids those of a dead process at once, forked children do not
inherit them, and NFS keeps them between machines where its lock service runs. On a file system
without locks there is a warning, and two writers of one folder are not noticed.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import logging
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import final

import msgspec

from mmemb.records.schema import Schema, read_json

_LOG = logging.getLogger(__name__)
LOCK = ".lock"
"""Name of the file in a folder that is being written; one that a dead process left is void."""

_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
_held: dict[tuple[int, Path], FolderLock] = {}
"""The locks of this process by its id, which a forked child does not share, and by folder."""


@final
class FolderLock:
    """The right to write a folder, until `release` or the end of the process.

    A process has one lock of a folder, however often it takes it: for the system a second one would
    be no conflict, and closing it would give up the first.
    """

    def __init__(self, folder: Path, handle: int) -> None:
        self.folder = folder
        self._handle: int | None = handle

    @classmethod
    def take(cls, folder: Path, waits: bool = False) -> FolderLock:
        """Takes the lock of a folder that exists.

        Args:
            folder: to be written.
            waits: waits until another process has given it up.

        Raises:
            ValueError: another process writes the folder; the message names it.
        """
        folder = folder.resolve()
        process_lock = _held.get((os.getpid(), folder))

        if process_lock is not None:
            return process_lock

        path = folder / LOCK
        while True:
            # Taken, refused, or on a file system without locks a handle that locks nothing.
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.lockf(handle, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
            except OSError as error:
                os.close(handle)
                if error.errno not in _NO_LOCKS:
                    raise ValueError(_taken(path)) from None
                _LOG.warning("%s has no locks: start nothing twice that writes there.", folder)
                handle = os.open(os.devnull, os.O_RDWR)
                break

            # The former holder removes the file at its end: this may be the lock of a file that no
            # other process can open any more.
            if _is_open_at(handle, path):
                break
            os.close(handle)

        # For the message of the next process that is refused.
        owner = _OwnerJson(os.getpid(), platform.node(), time.strftime("%F %T"))
        os.truncate(handle, 0)
        os.write(handle, msgspec.json.encode(owner))

        lock = cls(folder, handle)
        _held[os.getpid(), folder] = lock
        return lock

    def release(self) -> None:
        """Releases the folder; a second call does nothing."""
        if self._handle is None or _held.pop((os.getpid(), self.folder), None) is None:
            return
        # Removed while it is held: a process that has opened it meanwhile notices another file.
        if _is_open_at(self._handle, self.folder / LOCK):
            (self.folder / LOCK).unlink(missing_ok=True)

        os.close(self._handle)
        self._handle = None


@atexit.register
def _release_all() -> None:
    """Removes the lock files of a command that ends in an error."""
    for (pid, _), lock in list(_held.items()):
        if pid == os.getpid():
            lock.release()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder, which is made, for a block; waits for other processes."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FolderLock.take(folder, waits=True)
    try:
        yield
    finally:
        lock.release()


def _is_open_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False


@final
class _OwnerJson(Schema):
    """The holder of a lock, as it writes itself into the file."""

    pid: int
    host: str
    since: str


def _taken(path: Path) -> str:
    try:
        owner = read_json(path, _OwnerJson)
        writer = f"process {owner.pid} on {owner.host} since {owner.since}"
    except (OSError, ValueError):
        writer = "another process"
    return (
        f"{path.parent} is being written by {writer}: wait until it has ended, or end it, and give "
        "the same command again."
    )
