"""The lock of a folder that all ranks of a run write, and that lies outside of the run's own."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Trainer

from mmemb.distributed import gather_objects
from mmemb.locks import FolderLock


def lock_folder(folder: Path, trainer: Trainer) -> FolderLock | None:
    """Takes the lock of a folder, which is made, on the first rank.

    Raises:
        ValueError: on every rank alike, if another run is writing there.
    """
    lock, said = None, []
    if trainer.is_global_zero:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = FolderLock.take(folder)
        except ValueError as error:
            said = [str(error)]
    if failures := gather_objects(said):
        raise ValueError(failures[0])
    return lock
