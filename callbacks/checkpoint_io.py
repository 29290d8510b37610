"""WholeCheckpointIO: checkpoints that a kill cannot break, and the newest one that can be read."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any, final

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

from mmemb.storage.files import whole_file
from mmemb.storage.run_folder import LAST_CHECKPOINT
from mmemb.storage.tensor_files import read_weights

PREVIOUS = ".previous"
"""Ends the name of the checkpoint that another one of the same name has replaced."""


@final
class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, brings it to disk, reads it, then renames it.

    Lightning's own writes into `$TMPDIR` and moves the file, which between file systems is a copy
    under the final name. The checkpoint that is replaced stays as `NAME.previous` until the next
    one: no more space than writing needs in any case.

    Whole checkpoints of strategies that use a CheckpointIO come here: DDP and FSDP2 with
    `save_distributed_checkpoint: false`.
    """

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        # What is no local file is left to Lightning.
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return

        path = Path(path)
        # First, so that there are never three. A broken one takes the place of no whole one.
        # Half a file lacks the end by which a zip file is recognised.
        if zipfile.is_zipfile(path):
            _previous(path).unlink(missing_ok=True)

        with whole_file(path) as temporary:
            torch.save(checkpoint, temporary)
            # Read back before the rename: a damaged file must not take the place of a whole one.
            torch.load(temporary, map_location="cpu", weights_only=False, mmap=True)

            if path.is_file() and not _previous(path).exists():
                _keep(path)

    @override
    def remove_checkpoint(self, path: str | Path) -> None:
        super().remove_checkpoint(path)
        if "://" not in str(path):
            _previous(Path(path)).unlink(missing_ok=True)


def keep_whole_checkpoints(trainer: Trainer) -> None:
    """Makes a trainer write checkpoints by `WholeCheckpointIO`, unless it was given another IO.

    Raises:
        ValueError: its strategy writes checkpoints in pieces, one for each process, over those of
            the step before: a kill mixes them, and no command goes on from them.
    """
    strategy = trainer.strategy
    pieces = getattr(strategy, "_save_distributed_checkpoint", False)
    if pieces or getattr(strategy, "_state_dict_type", "full") == "sharded":
        raise ValueError(
            f"trainer.strategy {type(strategy).__name__} would write checkpoints in pieces, which "
            "a kill can mix and from which no command goes on. Set save_distributed_checkpoint: "
            "false (or state_dict_type: full) in its init_args, which leaves one file."
        )

    # The exact type: another IO, also one derived from Lightning's, was chosen by the user.
    if type(strategy.checkpoint_io) is TorchCheckpointIO:
        strategy.checkpoint_io = WholeCheckpointIO()


def newest_whole(folder: Path) -> Path | None:
    """The checkpoint to go on from: `last.ckpt`, else the newest other one that can be read.

    Prints one line if `last.ckpt` is broken and another one is taken.

    Args:
        folder: folder of the checkpoints of one run.

    Returns:
        None if the run has kept no last state: it starts again.

    Raises:
        ValueError: there are checkpoints, but none can be read.
    """
    last = folder / LAST_CHECKPOINT
    if not _has_last(folder):
        return None

    others = [path for path in folder.glob("*.ckpt") if path != last]
    others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    # In the order of preference: the last, the one that it replaced, then the newest.
    checkpoints = [path for path in (last, _previous(last), *others) if path.is_file()]

    for path in checkpoints:
        if can_be_read(path):
            if path != last:
                rank_zero_only(print)(
                    f"{last} is missing or broken: going on from {path.name}, the newest whole one."
                )
            return path

    read_weights(checkpoints[0], mmap=True)  # raises the error that names its fault
    raise ValueError(
        f"{checkpoints[0]} has damaged bytes, and no other checkpoint beside it is whole: delete "
        "the run's folder and start again."
    )


def must_start_again(folder: Path) -> bool:
    """True if a run has saved checkpoints, but none from which it goes on.

    One that starts again in the same folder would mix its checkpoints with those.
    """
    return not _has_last(folder) and any(folder.glob("*.ckpt"))


def can_be_read(path: Path) -> bool:
    """True if a checkpoint is there and whole, by the checksums of its parts."""
    try:
        read_weights(path, mmap=True)
        with zipfile.ZipFile(path) as parts:
            # Loading by mmap reads no tensor, so the checksums are compared apart.
            return parts.testzip() is None
    except (OSError, ValueError, zipfile.BadZipFile):
        return False


def _has_last(folder: Path) -> bool:
    last = folder / LAST_CHECKPOINT
    return last.is_file() or _previous(last).is_file()


def _keep(path: Path) -> None:
    try:
        os.link(path, _previous(path))
    except OSError:
        # A file system without hard links: for a moment, only the previous one is there.
        os.replace(path, _previous(path))


def _previous(path: Path) -> Path:
    return path.with_name(path.name + PREVIOUS)
