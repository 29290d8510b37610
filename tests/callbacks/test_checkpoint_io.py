"""Checkpoints: the old or the new one, whole, on every file system; the newest whole is taken."""

from __future__ import annotations

import os
import tempfile
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import Mock, patch

import pytest
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy

from callbacks.checkpoint_io import (
    WholeCheckpointIO,
    keep_whole_checkpoints,
    newest_whole,
)


def save(path: Path, step: int) -> None:
    WholeCheckpointIO().save_checkpoint({"step": step, "w": torch.zeros(3)}, path)


def step_of(path: Path | None) -> int:
    assert path is not None
    return int(torch.load(path)["step"])


@pytest.fixture
def last(tmp_path: Path) -> Path:
    """Where the last checkpoint of a run lies; two were written."""
    path = tmp_path / "checkpoints/last.ckpt"
    save(path, 1)
    save(path, 2)
    return path


def test_nothing_passes_through_the_folder_of_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There it would be on another file system: a move from there is a copy that a kill halves."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "no such folder"))
    with pytest.raises(FileNotFoundError):
        TorchCheckpointIO().save_checkpoint({"step": 1}, tmp_path / "theirs.ckpt")
    save(tmp_path / "ours.ckpt", 1)
    assert step_of(tmp_path / "ours.ckpt") == 1


def test_a_write_that_fails_leaves_the_one_before(last: Path) -> None:
    with (
        patch.object(torch, "save", lambda data, path: Path(path).write_bytes(b"PK half")),
        pytest.raises(RuntimeError),
    ):
        save(last, 3)
    with (
        patch.object(os, "replace", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        save(last, 3)
    assert step_of(last) == 2
    assert step_of(newest_whole(last.parent)) == 2
    save(last, 4)
    assert sorted(path.name for path in last.parent.iterdir()) == [
        "last.ckpt",
        "last.ckpt.previous",
    ]


@pytest.mark.parametrize("links", [True, False])
def test_a_broken_last_one_gives_way_to_the_one_before(
    last: Path, capsys: pytest.CaptureFixture[str], links: bool
) -> None:
    link = os.link if links else Mock(side_effect=OSError("no hard links here"))
    with patch.object(os, "link", link):
        save(last, 3)
        last.write_bytes(last.read_bytes()[:600])
        assert step_of(newest_whole(last.parent)) == 2
        assert capsys.readouterr().out.count("\n") == 1
        save(last, 3)
        assert step_of(newest_whole(last.parent)) == 3
        assert step_of(last.with_name("last.ckpt.previous")) == 2, "not the broken one"
        save(last, 4)
        assert step_of(last.with_name("last.ckpt.previous")) == 3
    assert capsys.readouterr().out == ""


def test_without_a_whole_one_the_broken_one_is_named(last: Path) -> None:
    assert newest_whole(last.parent / "elsewhere") is None
    last.with_name("last.ckpt.previous").unlink()
    last.write_bytes(b"fold")
    with pytest.raises(ValueError, match=r"last\.ckpt cannot be read"):
        newest_whole(last.parent)
    save(last.with_name("best.ckpt"), 1)
    assert step_of(newest_whole(last.parent)) == 1
    last.unlink()
    assert newest_whole(last.parent) is None, "a run that keeps no last state starts again"


def test_a_trainer_writes_them_whole_or_says_why_not() -> None:
    trainer = Trainer(accelerator="cpu", logger=False)
    keep_whole_checkpoints(trainer)
    assert isinstance(trainer.strategy.checkpoint_io, WholeCheckpointIO)

    own = Mock(spec=TorchCheckpointIO)
    trainer = Trainer(accelerator="cpu", logger=False, plugins=[own])
    keep_whole_checkpoints(trainer)
    assert trainer.strategy.checkpoint_io is own, "the user's choice"

    for pieces in (True, False):
        strategy = ModelParallelStrategy(1, 1, save_distributed_checkpoint=pieces)
        expected = pytest.raises(ValueError, match="pieces") if pieces else nullcontext()
        with patch.object(Trainer, "strategy", strategy), expected:
            keep_whole_checkpoints(trainer)


def test_a_trainer_takes_it_as_a_plugin(tmp_path: Path) -> None:
    trainer = Trainer(plugins=[WholeCheckpointIO()], accelerator="cpu", logger=False)
    assert isinstance(trainer.strategy.checkpoint_io, WholeCheckpointIO)


def test_a_last_one_that_is_broken_in_the_middle_gives_way(tmp_path: Path) -> None:
    state = {"weights": torch.ones(4096)}
    for name in ("last.ckpt", "last.ckpt.previous"):
        torch.save(state, tmp_path / name)
    assert newest_whole(tmp_path) == tmp_path / "last.ckpt"

    data = bytearray((tmp_path / "last.ckpt").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(64)
    (tmp_path / "last.ckpt").write_bytes(data)
    assert newest_whole(tmp_path) == tmp_path / "last.ckpt.previous"

    (tmp_path / "last.ckpt.previous").unlink()
    with pytest.raises(ValueError, match="damaged bytes"):
        newest_whole(tmp_path)
