"""SelectedWeights: the step whose weights a fit leaves, its last one or that of its best metric.

`search`, `load`, `export`, `test` and later stages read what the fit has saved, so they follow this
one choice. A fit that goes on does so from its last step, whichever weights it leaves.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from typing_extensions import override

from mmemb.storage.tensor_files import read_weights

Select = Literal["last", "best"]
"""Weights that a fit leaves: of its last step, or of the checkpoint that has the best metric."""

_LAST = "or set select: last"


@final
class SelectedWeights(Callback):
    """Puts the selected weights into the module, just before the module saves what it has trained.

    Give it behind every other callback that saves checkpoints or averages weights.

    Args:
        select: see `Select`.

    Attributes:
        record: what was selected: `select`, `step`, and of the best checkpoint `metric`, `value`
            and `checkpoint`, relative to the run's folder.
        metrics: those that the best checkpoint's step logged.
    """

    def __init__(self, select: Select = "last") -> None:
        self.select = select
        self.record: dict[str, Any] = {}
        self.metrics: dict[str, float] = {}
        self._last: dict[str, Tensor] = {}

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses before the first step what would be missing after the last one."""
        if self.select == "last" or trainer.fast_dev_run:
            return

        name = type(pl_module).__name__
        if not pl_module.automatic_optimization:
            raise ValueError(
                f"select is best, but {name} trains no weights step by step: leave select out."
            )

        checkpoint = _monitored(trainer)
        if checkpoint.save_weights_only:
            raise ValueError(
                "select is best, but the checkpoint that monitors "
                f"{checkpoint.monitor} has save_weights_only, so that averages of weights and the "
                "gate's calibration are not in it: leave save_weights_only out."
            )
        if str(checkpoint.monitor).startswith("val/") and trainer.limit_val_batches == 0:
            raise ValueError(
                f"select is best, by {checkpoint.monitor}, but this fit validates nothing: prepare "
                f"rows of split val, {_LAST}."
            )

        if isinstance(trainer.strategy, ModelParallelStrategy):
            raise ValueError(
                f"select is best, but the weights are spread over ranks: use ddp, {_LAST}."
            )
        if any(isinstance(c, StochasticWeightAveraging) for c in trainer.callbacks):
            raise ValueError(
                "select is best, but StochasticWeightAveraging averages after the last epoch, so "
                f"that no checkpoint holds its average: use EMAWeightAveraging, {_LAST}."
            )

    @override
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Lets a run whose folder was moved, or is named from elsewhere, go on with its best."""
        own = trainer.ckpt_path and Path(trainer.ckpt_path).is_relative_to(trainer.default_root_dir)
        if self.select == "last" or not own:
            return

        # Lightning forgets the best score where the folder has another name than before.
        for callback in trainer.checkpoint_callbacks:
            state = checkpoint.get("callbacks", {}).get(callback.state_key)
            if isinstance(callback, ModelCheckpoint) and state is not None:
                _rename(state, str(callback.dirpath))

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fast_dev_run:
            return
        self.record = {"select": self.select, "step": trainer.global_step}
        if self.select == "last":
            return

        # The first rank has written the file that all of them read.
        trainer.strategy.barrier()
        checkpoint, state = _best(trainer)

        # What is saved later in this fit is still its last step, from which alone it goes on.
        self._last = {name: value.clone() for name, value in pl_module.state_dict().items()}
        pl_module.on_load_checkpoint(state)
        pl_module.load_state_dict(state["state_dict"])

        self.metrics = state["metrics"]
        self.record |= {
            "step": state["global_step"],
            "metric": checkpoint.monitor,
            "value": self.metrics[str(checkpoint.monitor)],
            "checkpoint": os.path.relpath(checkpoint.best_model_path, trainer.default_root_dir),
        }

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._last:
            checkpoint["state_dict"] = self._last

    def describe(self) -> str:
        """Returns words about the selected step, for the last line of a run; "" for the last."""
        if self.select == "last" or not self.record:
            return ""
        return ", weights of step {step}, the best by {metric} ({value:.3f})".format(**self.record)


def _monitored(trainer: Trainer) -> ModelCheckpoint:
    """Returns the one callback that saves a best checkpoint."""
    found = [
        callback
        for callback in trainer.checkpoint_callbacks
        if isinstance(callback, ModelCheckpoint) and callback.monitor and callback.save_top_k
    ]
    if len(found) != 1:
        monitors = ", ".join(str(callback.monitor) for callback in found) or "none"
        raise ValueError(
            "select is best, so exactly one ModelCheckpoint must have a monitor and save_top_k of "
            f"at least 1; those of trainer.callbacks monitor: {monitors}. Give it "
            f"{{monitor: val/recall@1, mode: max, filename: best}}, {_LAST}."
        )
    return found[0]


def _rename(state: dict[str, Any], folder: str) -> None:
    """Changes the paths in the state of a ModelCheckpoint to those of its folder's name of now."""

    def moved(path: str) -> str:
        return path and os.path.join(folder, os.path.relpath(path, state["dirpath"]))

    for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
        state[key] = moved(state[key])
    state["best_k_models"] = {moved(path): score for path, score in state["best_k_models"].items()}
    state["dirpath"] = folder


def _best(trainer: Trainer) -> tuple[ModelCheckpoint, dict[str, Any]]:
    """Returns the callback that saved the best checkpoint, and what the checkpoint holds."""
    callback = _monitored(trainer)
    path, score = Path(callback.best_model_path), callback.best_model_score

    # The path of a checkpoint that this fit was continued from lies in another run.
    inside = callback.best_model_path and path.is_relative_to(str(callback.dirpath))
    if not inside or score is None or not torch.isfinite(score):
        raise ValueError(
            f"select is best, but {callback.monitor} was never measured in this fit, or was never "
            "finite: set trainer.val_check_interval to at most the number of steps (and prepare "
            f"rows of split val), {_LAST}."
        )

    # A kill may leave a file that is newer than the state from which the fit went on.
    state = read_weights(path)
    value = state.get("metrics", {}).get(str(callback.monitor))
    if value is None or not torch.isclose(torch.tensor(value), score.float().cpu()):
        raise ValueError(
            f"{path} was saved with {callback.monitor} {value}, but the best of this fit is "
            f"{float(score)}: it is the checkpoint of another step. Remove the run's folder and "
            "start again."
        )
    return callback, state
