"""Checks before a stage starts: too little disk or memory is said in one paragraph."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from mmemb.storage import resources as guards
from mmemb.storage.resources import GIB, available_memory_gib, check_disk, check_memory


def test_enough_room_is_silent(tmp_path: Path) -> None:
    check_disk(tmp_path / "not" / "yet" / "there", 1e-6)
    check_memory(1e-6)
    assert not (tmp_path / "not").exists(), "a check makes nothing"


def test_a_full_disk_names_folder_need_and_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, int(0.25 * GIB)))
    check_disk(tmp_path, 0.2)
    with pytest.raises(OSError, match=r"runs.*needs 1\.5 GiB.*has 0\.2.*MMEMB_RUNS"):
        check_disk(tmp_path / "runs", 1.5)


def test_little_memory_names_need_and_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "available_memory_gib", lambda: 2.0)
    check_memory(2.0)
    with pytest.raises(MemoryError, match=r"3\.0 GiB.*has 2\.0.*batch_size"):
        check_memory(3.0)


def test_a_system_that_does_not_say_is_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "available_memory_gib", lambda: None)
    check_memory(1e9)


def test_available_memory_is_what_the_kernel_says() -> None:
    found = available_memory_gib()
    assert found is None or 0 < found < 1e5
