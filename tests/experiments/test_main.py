"""The command `mmemb`: its list, its errors, `--root`; the wheel is tried in `tests/end_to_end`."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from experiments.__main__ import COMMANDS, ROOT, STARTED_IN, enter_root, main, run, usage
from experiments.rooms import SAFE_PATH
from tests.fixtures.bare_process import run_without
from tests.fixtures.paths import REPO


def test_the_list_of_commands_needs_no_library() -> None:
    def list_commands() -> str:
        from experiments.__main__ import usage

        return usage()

    refused = ["torch", "lightning", "jsonargparse", "numpy", "yaml"]
    assert run_without(refused, list_commands) == usage()


def test_every_documented_command_is_one_of_mmemb() -> None:
    texts = [path.read_text() for path in (REPO / "README.md", *(REPO / "docs").glob("*.md"))]
    ours = re.compile(r"python -m ((?:experiments|datamodules)\.\w+)")
    found = {match for text in texts for match in ours.findall(text)}
    assert found, "the pages name commands"
    assert found <= {command.module.removesuffix(".__main__") for command in COMMANDS.values()}
    assert all(find_spec(command.module) for command in COMMANDS.values())

    page = (REPO / "docs/commands.md").read_text(encoding="utf-8")
    rows = "".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `"))
    assert set(COMMANDS) <= set(re.findall(r"\w+", rows))


def test_an_unknown_command_is_answered_with_the_nearest() -> None:
    with pytest.raises(SystemExit, match="no command 'serch'. Did you mean search?"):
        run("serch", [])


@pytest.mark.parametrize("name", ["pipeline", "prepare", "plan", "search"])
def test_help_names_the_command_as_it_was_given(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.suppress(SystemExit):
        run(name, ["--help"])
    text = capsys.readouterr().out
    assert f"mmemb {name}" in text
    assert "python -m" not in text.partition("\n")[0]


def test_a_commands_errors_and_status_are_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="error: none.yaml: there is no such pipeline file"):
        run("pipeline", ["none.yaml"])
    with pytest.raises(SystemExit) as end:
        run("fit", ["--config", "none.yaml"])
    assert str(end.value.code).startswith("error: --config none.yaml: there is no such file")


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which a command is given; what it changes is undone."""
    for name in (ROOT, STARTED_IN, SAFE_PATH):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["bin/mmemb"])
    return folder


def test_at_another_root_yaml_files_are_those_of_the_working_folder(
    started: Path, tmp_path: Path
) -> None:
    for name in ("stage.yaml", "pipeline.yaml"):
        (started / name).write_text("")
    (tmp_path / "big").mkdir()
    words = ["pipeline", "pipeline.yaml", "--config", "stage", "--root", "../big", "--name", "x"]
    found = enter_root([*words, "--config=pocket/trunk", "--out=runs/a"])

    assert Path.cwd() == tmp_path / "big"
    assert found[:4] == [
        "pipeline",
        f"{started}/pipeline.yaml",
        "--config",
        f"{started}/stage.yaml",
    ]
    assert found[4:6] == ["--name", "x"]
    assert found[6] == f"--config={REPO}/experiments/configs/pocket/trunk.yaml"
    assert found[7] == "--out=runs/a"

    # A rank is started there by the same words, and finds the classes of the first process.
    assert sys.argv[0] == f"{started}/bin/mmemb"
    assert os.environ[STARTED_IN] == str(started)
    assert enter_root(found) == found
    assert Path.cwd() == tmp_path / "big"


def test_without_a_root_nothing_moves(started: Path) -> None:
    assert enter_root(["fit", "--config", "stage"]) == ["fit", "--config", "stage"]
    assert Path.cwd() == started
    assert STARTED_IN not in os.environ
    with pytest.raises(ValueError, match="there is no such folder"):
        enter_root(["fit", "--root=none"])


def test_processes_of_the_command_run_no_module_of_the_working_folder(started: Path) -> None:
    """`mmemb pipeline` makes data in a process of its own, by `python -m`."""
    (started / "argparse.py").write_text("open('ran', 'w')")
    words = [sys.executable, "-m", "datamodules.prepare", "--help"]
    main()
    assert subprocess.run(words, capture_output=True, check=False).returncode == 0
    assert not (started / "ran").exists()

    # `python -m` believes the folder, as it always has.
    del os.environ[SAFE_PATH]
    subprocess.run(words, capture_output=True, check=False)
    assert (started / "ran").exists()
    sys.path.insert(0, str(started))
    try:
        main()
    finally:
        sys.path.remove(str(started))
    assert SAFE_PATH not in os.environ
