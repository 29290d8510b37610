"""Configuration files are found from any folder, and a line says which of two was taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.cli.config_files import CONFIGS, find_config, lookup_lines, path_beside


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "name",
    ["pocket/trunk", "pocket/trunk.yaml", "experiments/configs/pocket/trunk.yaml"],
)
def test_a_packaged_file_is_found_from_any_folder(elsewhere: Path, name: str) -> None:
    assert find_config(name) == CONFIGS / "pocket/trunk.yaml"
    lines = list(lookup_lines([name]))
    assert len(lines) == (not name.startswith("experiments/"))
    assert all(str(CONFIGS / "pocket/trunk.yaml") in line for line in lines)


@pytest.mark.parametrize("name", ["pocket/trunk", "pocket/trunk.yaml"])
def test_a_file_of_the_working_folder_wins_and_it_is_said(elsewhere: Path, name: str) -> None:
    own = Path("pocket/trunk.yaml")
    own.parent.mkdir()
    own.write_text("")
    assert find_config(name) == own
    assert "of this folder" in next(lookup_lines([name]))


def test_what_is_nowhere_keeps_its_name(elsewhere: Path) -> None:
    assert find_config("pocket/trnk") == Path("pocket/trnk")
    assert not list(lookup_lines(["pocket/trnk", "own.yaml"]))


def test_a_pipeline_finds_the_files_beside_it(elsewhere: Path) -> None:
    (elsewhere / "mine").mkdir()
    (elsewhere / "mine/trunk.yaml").write_text("")
    for name in ("trunk", "trunk.yaml"):
        assert path_beside(name, Path("mine")) == "mine/trunk.yaml"
    assert path_beside("pocket/trunk", Path("mine")) == "pocket/trunk"
