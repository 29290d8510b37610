"""Places of a run's loggers and checkpoints: in its folder, whichever logger was chosen."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from mmemb.storage.run_folder import RunFolder


def place_loggers(trainer: Namespace, run_folder: Path) -> None:
    """Puts the relative `save_dir` of every configured logger below the run folder.

    Args:
        trainer: the configuration of the trainer, changed in place.
        run_folder: of the run.
    """
    configured = trainer.logger if isinstance(trainer.logger, list) else [trainer.logger]
    for logger in configured:
        init_args = logger.get("init_args") if isinstance(logger, Namespace) else None
        if init_args is not None and init_args.get("save_dir") is not None:
            init_args.save_dir = str(run_folder / init_args.save_dir)


def keep_checkpoints_in(trainer: Trainer, run_folder: Path) -> None:
    """Sets the folder of checkpoints, which Lightning would else take from the first logger: the
    next command looks for `checkpoints/last.ckpt` in the run folder."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
            callback.dirpath = str(RunFolder(run_folder).checkpoints)
