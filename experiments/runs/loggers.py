"""Places of a run's loggers and checkpoints: in its folder, whichever logger was chosen, or below a
folder of logs that all runs share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import final

from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from mmemb.storage.run_folder import RunFolder

STORES = {"WandbLogger": "name", "MLFlowLogger": "run_name"}
"""Loggers that keep many runs in one place, and their argument that names a run."""


@final
@dataclass(frozen=True, slots=True)
class LogFolders:
    """The folders of a run's logs.

    Attributes:
        run: of loggers that write files of one run, such as TensorBoard's.
        store: of loggers that keep many runs in one place (`STORES`).
    """

    run: Path
    store: Path

    @classmethod
    def of(cls, run_folder: Path, runs: Path, shared: str | None) -> LogFolders:
        """Returns the run's own folder, or with a shared one `SHARED/EXPERIMENT/RUN` and `SHARED`.

        Args:
            run_folder: of the run.
            runs: folder of all runs, which the run lies in.
            shared: the setting `log_folder`.
        """
        if shared is None:
            return cls(run_folder, run_folder)
        return cls(Path(shared) / run_folder.relative_to(runs), Path(shared))


def place_loggers(trainer: Namespace, folders: LogFolders, name: str) -> None:
    """Puts the relative `save_dir` of every configured logger below its folder, and names the run.

    Args:
        trainer: the configuration of the trainer, changed in place.
        folders: of the run's logs.
        name: of the run, for loggers that keep many of them and were given none.
    """
    configured = trainer.logger if isinstance(trainer.logger, list) else [trainer.logger]
    for logger in configured:
        init_args = logger.get("init_args") if isinstance(logger, Namespace) else None
        if init_args is None:
            continue

        naming = STORES.get(logger.class_path.rpartition(".")[2])
        folder = folders.run if naming is None else folders.store
        if naming is not None and init_args.get(naming) is None:
            init_args[naming] = name

        if init_args.get("save_dir") is None:
            continue
        init_args.save_dir = str(folder / init_args.save_dir)

        # MLflow 3 refuses a store of plain files, which is what Lightning would ask for.
        if logger.class_path.endswith("MLFlowLogger") and not init_args.get("tracking_uri"):
            _use_database(init_args)


def _use_database(mlflow: Namespace) -> None:
    """Names a database in the logger's `save_dir`, and a folder beside it for texts and figures."""
    folder = Path(mlflow.save_dir).absolute()

    # SQLite makes no folder.
    folder.mkdir(parents=True, exist_ok=True)
    mlflow.tracking_uri = f"sqlite:///{folder}/mlflow.db"
    if mlflow.get("artifact_location") is None:
        mlflow.artifact_location = str(folder / "artifacts")


def keep_checkpoints_in(trainer: Trainer, run_folder: Path) -> None:
    """Sets the folder of checkpoints, which Lightning would else take from the first logger: the
    next command looks for `checkpoints/last.ckpt` in the run folder."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
            callback.dirpath = str(RunFolder(run_folder).checkpoints)
