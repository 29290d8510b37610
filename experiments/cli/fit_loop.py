"""WholeFitLoop: Lightning's fit loop, which also completes a fit whose last step is behind it.

Lightning skips the loop when a checkpoint stands at the last step: neither the last validation nor
`on_train_end`, where the trained model is written, would ever run.
"""

from __future__ import annotations

from pathlib import Path
from typing import final

from lightning.pytorch import Trainer
from lightning.pytorch.loops.fit_loop import _FitLoop
from typing_extensions import override

from callbacks.fit_end import has_ended, stopped_early, unfinished_fit


@final
class WholeFitLoop(_FitLoop):
    """Validates and ends a restored fit that has no step left; an interrupted one raises."""

    @classmethod
    def of(cls, trainer: Trainer) -> WholeFitLoop:
        """Builds the loop with the limits of the trainer's own one."""
        default = trainer.fit_loop
        loop = cls(trainer, min_epochs=default.min_epochs, max_epochs=default.max_epochs)

        loop.epoch_loop = default.epoch_loop
        return loop

    @property
    @override
    def skip(self) -> bool:
        return self.max_batches == 0 or self.trainer.limit_train_batches == 0

    @override
    def on_run_start(self) -> None:
        trainer = self.trainer

        # Lightning does not restore that an EarlyStopping had stopped this run before its end.
        if self._continues_own_run() and stopped_early(trainer):
            trainer.should_stop = True

        super().on_run_start()

        if self.done and has_ended(trainer) and trainer.enable_validation:
            self._validate()

    @override
    def on_run_end(self) -> None:
        if not has_ended(self.trainer):
            raise unfinished_fit(self.trainer)
        super().on_run_end()

    def _continues_own_run(self) -> bool:
        path = self.trainer.ckpt_path
        return path is not None and Path(path).is_relative_to(self.trainer.default_root_dir)

    def _validate(self) -> None:
        """Validates after the last step, which the process before may not have reached."""
        trainer = self.trainer
        trainer.validating = True

        self.epoch_loop.val_loop.restarting = False
        self.epoch_loop.val_loop.run()

        trainer.training = True

        # Where every epoch is validated once, a best checkpoint is saved at the end of the epoch.
        for callback in trainer.checkpoint_callbacks:
            callback.on_train_epoch_end(trainer, trainer.lightning_module)
