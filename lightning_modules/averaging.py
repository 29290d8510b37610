"""Averages of weights over a training, by Lightning's callbacks, and the limits of these.

`StochasticWeightAveraging` and `WeightAveraging` put their averages into the module before it saves
what it has trained, so that a saved model holds them.
"""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_modules.schedule import num_training_steps


def check_averaging(module: LightningModule, trainer: Trainer) -> None:
    """Raises ValueError about callbacks that would leave weights without their average.

    Args:
        module: the module at the start of its fit.
        trainer: trainer of the fit.

    Raises:
        ValueError: the fit is too short, the weights are made after the callbacks copied the
            module, they are spread over ranks, or statistics would be lost.
    """
    kinds = StochasticWeightAveraging | WeightAveraging
    for callback in (c for c in trainer.callbacks if isinstance(c, kinds)):
        name = type(callback).__name__

        if isinstance(trainer.strategy, ModelParallelStrategy):
            raise ValueError(f"{name} averages no weights that are spread over ranks: use ddp.")

        # Parameters made later than the copy show as a difference in number.
        copied = list(callback._average_model.parameters())
        if len(copied) != len(list(module.parameters())):
            raise ValueError(
                f"{name} copies the module before {type(module).__name__} makes its weights, so "
                "it would not average them: leave it out of trainer.callbacks."
            )

        if isinstance(callback, StochasticWeightAveraging):
            _check_epochs(callback, trainer)
            _check_batch_norms(module)


def _check_epochs(callback: StochasticWeightAveraging, trainer: Trainer) -> None:
    """Weights are averaged once an epoch, and moved into the module after the last of them."""
    epochs, first = trainer.max_epochs, callback.swa_start
    cut = trainer.max_steps >= 0 and num_training_steps(trainer) == trainer.max_steps

    # `max_steps` may end the fit within the last epoch, which then would never be averaged.
    if epochs is None or epochs < max(2, first + 1) or cut:
        raise ValueError(
            f"StochasticWeightAveraging averages once an epoch, here from epoch {first} of "
            f"{epochs} on, and only if all epochs are trained: set trainer.max_epochs to a larger "
            "number and trainer.max_steps to -1, or use EMAWeightAveraging, which averages at "
            "every step."
        )


def _check_batch_norms(module: LightningModule) -> None:
    for name, part in module.named_modules():
        # The callback runs the data once more to fill statistics, also those that were frozen.
        if isinstance(part, _BatchNorm) and not part.training:
            raise ValueError(
                f"StochasticWeightAveraging would reset the statistics of {name}, a batch "
                "normalisation that is not trained: use EMAWeightAveraging."
            )
