"""An error about a missing folder ends with the command that makes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.cli.config_files import CONFIGS
from experiments.cli.missing_folders import check_data_root, making_commands

RUNS = Path("runs/pocket")
POCKET = CONFIGS / "pocket"


@pytest.mark.parametrize(
    ("missing", "command"),
    [
        ("selected", f"predict --config {POCKET}/selection.yaml"),
        ("trunk/backbone/config.json", f"fit --config {POCKET}/trunk.yaml"),
        ("judge-b", f"fit --config {POCKET}/judge.yaml --data.fold b"),
    ],
)
def test_the_stage_beside_it_that_makes_a_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    message = f"The shard folder runs/pocket/{missing} does not exist."
    lines = making_commands(
        message, RUNS, Path("data/pocket"), [CONFIGS / "base.yaml", POCKET / "gate.yaml"]
    )
    assert lines == f"\nThis makes it: python -m experiments.run {command}"


def test_shared_flags_are_those_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--experiment=mine", "--data.fold", "a", "--data_root", "d"]
    lines = making_commands(
        "no runs/mine/features", Path("runs/mine"), Path("d"), [POCKET / "a.yaml"], flags
    )
    assert lines.endswith("features.yaml --experiment mine --data_root d")


def test_data_are_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = making_commands("data/own/pairs is missing", RUNS, Path("data/own"), [])
    assert "datamodules.prepare folder --table TABLE --media FOLDER --out data/own" in lines


@pytest.mark.parametrize(
    ("file", "arguments"),
    [
        ("own/test.yaml", "folder --table TABLE --media FOLDER"),
        ("mmeb_v2/embedder.yaml", "mmeb-train"),
    ],
)
def test_a_missing_data_root_is_told_before_anything_else(
    tmp_path: Path, file: str, arguments: str
) -> None:
    """By the data of the stage's own file, whatever the folder is called."""
    root = tmp_path / "mine"
    with pytest.raises(FileNotFoundError, match="there is no such folder") as caught:
        check_data_root(root, [CONFIGS / "base.yaml", CONFIGS / file])
    assert f"This makes it: python -m datamodules.prepare {arguments}" in str(caught.value)
    assert str(caught.value).endswith(f"--out {root}")

    root.mkdir()
    check_data_root(root, [CONFIGS / "base.yaml"])


def test_what_is_there_or_no_stage_makes_gets_no_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/pocket/trunk").mkdir(parents=True)
    files = [POCKET / "gate.yaml"]
    assert not making_commands("runs/pocket/trunk has other weights", RUNS, Path("d"), files)
    assert making_commands("runs/pocket/trunk: run the step that makes it", RUNS, Path("d"), files)
    assert not making_commands("runs/pocket/nothing is missing", RUNS, Path("d"), files)
    assert not making_commands("elsewhere/features is missing", RUNS, Path("d"), files)


def test_other_files_beside_the_configuration_hide_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text("model: [")
    (tmp_path / "b.yaml").write_bytes(b"model: \xff")
    (tmp_path / "c.yaml").write_text("model: x\ntrainer: {callbacks: [x, {init_args: [folder]}]}")
    (tmp_path / "d.yaml").write_text("name: trunk\nmodel: x\ntrainer: null")
    files = [tmp_path / "gate.yaml"]
    lines = making_commands("no runs/pocket/trunk", RUNS, Path("data/pocket"), files)
    assert lines == f"\nThis makes it: python -m experiments.run fit --config {tmp_path}/d.yaml"
