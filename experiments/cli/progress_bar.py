"""The words of Lightning's progress bar where a fit has steps and no number of epochs."""

from __future__ import annotations

from functools import partial

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import RichProgressBar


def drop_number_of_epochs(trainer: Trainer) -> None:
    """Shows `Epoch 0` where epochs have no limit, for which Lightning shows `Epoch 0/-2`."""
    bar = trainer.progress_bar_callback

    # With steps alone, Lightning sets the number of epochs to -1 when the fit begins.
    endless = trainer.max_epochs == -1 or (trainer.max_epochs is None and trainer.max_steps >= 0)

    if isinstance(bar, RichProgressBar) and endless:
        width = len(bar.validation_description)
        bar._get_train_description = partial(_description, width)  # type: ignore[method-assign]


def _description(width: int, epoch: int) -> str:
    # As wide as the words of a validation, or the bar would jump.
    return f"{f'Epoch {epoch}':{width}}"
