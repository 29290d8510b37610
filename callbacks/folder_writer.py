"""FolderWriter: base of callbacks that write a folder outside of the run's own, alone."""

from __future__ import annotations

from abc import ABC
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from mmemb.distributed import gather_objects
from mmemb.storage.locks import FolderLock
from mmemb.storage.trained_facts import TrainedFacts


class FolderWriter(Callback, ABC):
    """Holds the lock of a folder that all ranks of a run write, from `lock` to `release`.

    Args:
        folder: folder of the files.

    Attributes:
        fingerprint: hash of the inputs and settings that make the files.
        command: command that makes the files; errors about them name it.
        facts: facts behind the models that make the files; a model trained on these inherits them.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.fingerprint = self.command = ""
        self.facts = TrainedFacts()
        self._lock: FolderLock | None = None

    def describe_run(self, fingerprint: str, command: str, facts: TrainedFacts) -> None:
        """Takes what makes the files; see `mmemb.storage.protocols.FolderCallback`."""
        self.fingerprint, self.command, self.facts = fingerprint, command, facts

    def lock(self, trainer: Trainer) -> None:
        """Takes the lock of the folder, which is made, on the first rank.

        Raises:
            ValueError: on every rank alike, if another run is writing there.
        """
        failures = []
        # One process holds the lock, and all of them fail if it cannot be had.
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                self._lock = FolderLock.take(self.folder)
            except ValueError as error:
                failures = [str(error)]

        if failures := gather_objects(failures):
            raise ValueError(failures[0])

    def release(self) -> None:
        """Releases the folder; a second call does nothing."""
        if self._lock is not None:
            self._lock.release()

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self.release()
