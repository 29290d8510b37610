"""Modules that would take the place of a room are refused in one sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.rooms import HOME, check_folder, check_rooms
from tests.fixtures.paths import REPO


@pytest.mark.parametrize("name", ["callbacks.py", "datamodules/__init__.py"])
def test_a_folder_with_a_module_of_a_rooms_name_is_refused(tmp_path: Path, name: str) -> None:
    place = tmp_path / name
    place.parent.mkdir(exist_ok=True)
    place.write_text("")
    with pytest.raises(ValueError, match=r"has the name of .*Rename it") as caught:
        check_folder(tmp_path)
    assert str(tmp_path / Path(name).parts[0]) in str(caught.value)


def test_a_plain_folder_hides_an_editable_installation_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "experiments").mkdir()
    monkeypatch.setattr(sys, "path", [str(HOME)])
    check_folder(tmp_path)
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(ValueError, match="has the name of experiments"):
        check_folder(tmp_path)


def test_the_rooms_themselves_are_no_others() -> None:
    check_folder(HOME)
    check_rooms()


def test_python_m_ends_with_one_sentence_too(tmp_path: Path) -> None:
    (tmp_path / "callbacks.py").write_text("raise AssertionError('it was run')")
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    command = [sys.executable, "-m", "experiments.run", "fit"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: callbacks is a package of mmemb-r1, but Python finds ")
    assert len(done.stderr.splitlines()) == 1
