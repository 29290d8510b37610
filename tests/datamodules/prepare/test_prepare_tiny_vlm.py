"""`prepare tiny-vlm`: which folders it takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from datamodules.prepare.__main__ import main
from datamodules.prepare.tiny_vlm import command as tiny_vlm_command


def test_what_a_killed_run_left_is_no_model_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tiny_vlm_command, "write_tiny_vlm", lambda *_: None)
    command = ["tiny-vlm", "--out", str(tmp_path)]
    (tmp_path / ".tiny.json.0a1b2c3d-17-4e5f6071.tmp").touch()
    (tmp_path / "precious").touch()
    assert main(command) == 1
    assert "holds something else" in capsys.readouterr().err
    (tmp_path / "precious").unlink()
    assert main(command) == 0
    assert (tmp_path / "tiny.json").is_file()
