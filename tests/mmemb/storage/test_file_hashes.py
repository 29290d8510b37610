"""Hashes of files that are read again only where a file may have changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mmemb.storage import file_hashes
from mmemb.storage.file_hashes import FileHashes
from mmemb.storage.files import file_identity, file_sha256
from mmemb.storage.manifests import _hash_file

OLD, NEW = b"old bytes", b"new bytes"


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of this moment count as old: a test cannot wait for the clock."""
    monkeypatch.setattr(file_hashes, "_CLOCK_TICK_NS", -(10**12))


def overwrite(path: Path) -> None:
    path.write_bytes(NEW)


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(NEW)
    other.replace(path)


def write_and_change(path: Path, change: Callable[[Path], None]) -> None:
    """As `unzip` and `rsync -t` do: size and modification time stay."""
    times = path.stat()
    change(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_mtime_ns == times.st_mtime_ns


@pytest.mark.parametrize("change", [overwrite, replace])
def test_other_bytes_of_equal_size_and_time_are_read(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    path, memory = tmp_path / "a.png", tmp_path / "hashes.json"
    path.write_bytes(OLD)
    hashes = FileHashes(memory)
    before = (hashes.sha256(path), _hash_file(path), file_identity(path))
    hashes.save()
    write_and_change(path, change)
    expected = file_sha256(path)
    assert before[0] != expected
    assert FileHashes(memory).sha256(path) == _hash_file(path) == expected
    assert file_identity(path) != before[2]


def test_an_unchanged_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, memory = tmp_path / "a.png", tmp_path / "hashes.json"
    path.write_bytes(OLD)
    first = FileHashes(memory)
    expected = first.sha256(path)
    first.save()
    read: list[Path] = []
    monkeypatch.setattr(file_hashes, "file_sha256", lambda path: read.append(path) or "new")
    assert FileHashes(memory).sha256(path) == expected
    assert not read
    assert FileHashes(memory, recheck=True).sha256(path) == "new"


def test_a_file_that_has_only_just_changed_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may change again within the same tick of the clock."""
    monkeypatch.undo()
    path, memory = tmp_path / "a.png", tmp_path / "hashes.json"
    path.write_bytes(OLD)
    hashes = FileHashes(memory)
    hashes.sha256(path)
    hashes.save()
    assert not memory.exists()


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"a": 1}', b"\xff"])
def test_a_broken_memory_costs_time_alone(tmp_path: Path, content: bytes) -> None:
    memory = tmp_path / "hashes.json"
    memory.write_bytes(content)
    (tmp_path / "a.png").write_bytes(OLD)
    assert FileHashes(memory).sha256(tmp_path / "a.png") == file_sha256(tmp_path / "a.png")
