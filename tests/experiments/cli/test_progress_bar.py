"""The words of the progress bar."""

from __future__ import annotations

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import RichProgressBar

from experiments.cli.progress_bar import drop_number_of_epochs


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"max_steps": 3}, "Epoch 0"),
        ({"max_steps": 3, "max_epochs": -1}, "Epoch 0"),
        ({"max_epochs": 2}, "Epoch 0/1"),
        ({"max_epochs": 2, "max_steps": 3}, "Epoch 0/1"),
    ],
)
def test_an_epoch_is_counted_only_where_there_is_a_number(
    limits: dict[str, int], words: str
) -> None:
    bar = RichProgressBar()
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[bar], **limits
    )
    bar._trainer = trainer
    drop_number_of_epochs(trainer)
    assert bar._get_train_description(0).strip() == words
