"""Locks of folders: one living process writes, a dead one holds nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from experiments.runs.folders import new_folder
from mmemb.storage.locks import LOCK, FolderLock, locked


@contextmanager
def held_elsewhere(folder: Path) -> Iterator[int]:
    """Another process holds the lock of a folder, and is killed at the end; gives its id."""
    ready, done = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        FolderLock.take(folder)
        os.write(ready[1], b"x")
        os.read(done[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def in_child(act: Callable[[], None]) -> int:
    """Runs `act` in a forked process; returns its exit status: 0, or 1 for a ValueError."""
    child = os.fork()
    if child == 0:
        try:
            act()
        except ValueError:
            os._exit(1)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_another_process_is_refused_until_the_lock_is_released(tmp_path: Path) -> None:
    lock = FolderLock.take(tmp_path)
    assert in_child(lambda: FolderLock.take(tmp_path) and None) == 1
    assert FolderLock.take(tmp_path) is lock, "the same process goes on with the lock that it has"
    lock.release()
    assert not (tmp_path / LOCK).exists()
    assert in_child(lambda: FolderLock.take(tmp_path) and None) == 0


def test_the_refusal_names_the_writer(tmp_path: Path) -> None:
    with (
        held_elsewhere(tmp_path) as child,
        pytest.raises(ValueError, match=rf"is being written by process {child} on .* since"),
    ):
        FolderLock.take(tmp_path)

    assert (tmp_path / LOCK).is_file(), "the dead process could not remove it"
    FolderLock.take(tmp_path).release()


def test_a_forked_child_holds_nothing(tmp_path: Path) -> None:
    """Reading processes outlive a killed training for seconds."""
    ready, done = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        FolderLock.take(tmp_path)
        reader = os.fork()
        if reader == 0:
            os.write(ready[1], b"x")
            os.read(done[0], 1)
        os._exit(0)
    os.waitpid(child, 0)
    os.read(ready[0], 1)
    FolderLock.take(tmp_path).release()
    os.write(done[1], b"x")


def test_a_lock_may_be_waited_for(tmp_path: Path) -> None:
    ready = os.pipe()
    child = os.fork()
    if child == 0:
        with locked(tmp_path):
            os.write(ready[1], b"x")
            (tmp_path / "first").touch()
        os._exit(0)
    os.read(ready[0], 1)
    with locked(tmp_path):
        assert (tmp_path / "first").exists()
    os.waitpid(child, 0)


def test_folders_of_one_name_are_numbered(tmp_path: Path) -> None:
    made = [new_folder(tmp_path / "runs", "1-trunk-x").name for _ in range(3)]
    assert made == ["1-trunk-x", "1-trunk-x-2", "1-trunk-x-3"]
