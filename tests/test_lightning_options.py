"""Options of Lightning's trainer: each works as documented, or is refused in one sentence."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.tiny_experiment import run, write_experiment


def contents(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.slow
def test_a_development_run_keeps_nothing(
    tiny_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    experiment = write_experiment(tmp_path, tiny_root)
    for stage in ("trunk", "features"):
        command = experiment.command(stage, "--runs", str(tmp_path / "runs"))
        run([*command, "--trainer.fast_dev_run", "true"])
        assert "ran 1 batch(es), nothing is kept" in capsys.readouterr().out
    assert not contents(tmp_path / "temporary")
    assert not (tmp_path / "runs").exists() or not contents(tmp_path / "runs")
