"""HParams: settings and best metrics of a run, for every logger that compares runs by them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from typing_extensions import override

HIGHER = ("recall", "hit", "accuracy", "ndcg", "mrr", "map")


LAYOUT = {
    "headline": {
        "retrieval": ["Multiline", [r"val/recall@1", r"val/hit@1", r"test/recall@1"]],
        "quality against invocation": [
            "Multiline",
            [r"(val|test)/recall@1", r"(train|val|test)/invocation_ratio"],
        ],
    },
    "training": {
        "loss parts": ["Multiline", [r"train/(loss|.*_loss)"]],
        "in-batch accuracy": ["Multiline", [r"train/in_batch_accuracy"]],
        "throughput": ["Multiline", [r"train/samples_per_second", r"train/data_wait_share"]],
    },
}
"""The page *Custom scalars*: category -> chart -> tags, as regular expressions."""


@final
class BestMetrics:
    """The best value of every metric: the highest of what `HIGHER` names, else the lowest."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Adds the present values; a value that is not a number is left out."""
        for name, value in metrics.items():
            number = float(value)
            # NaN alone differs from itself; as a best value it would stay for ever.
            if number != number:
                continue
            best = max if any(word in name for word in HIGHER) else min
            self.values[name] = best(self.values.get(name, number), number)


@final
class HParams(Callback):
    """Hands settings and best metrics of a run to all loggers. TensorBoard gets them where its
    HParams tab looks for them, and the layout of the page *Custom scalars*.

    `save_hyperparameters` would do so too, but then a checkpoint's settings silently beat the
    command line's.

    Args:
        settings: dotted key -> value; what is neither number, text nor truth value is written as
            text.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = {key: _plain(value) for key, value in settings.items()}
        self.best = BestMetrics()

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for logger in trainer.loggers:
            # TensorBoard gets the settings at the end, in one summary with the best metrics.
            if isinstance(logger, TensorBoardLogger):
                if trainer.is_global_zero:
                    logger.experiment.add_custom_scalars(LAYOUT)
            else:
                logger.log_hyperparams(self.settings)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.best.add(trainer.callback_metrics)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer)

    on_test_end = on_fit_end

    def _write(self, trainer: Trainer) -> None:
        self.best.add(trainer.callback_metrics)
        # Apart from the last values, which loggers show under the metric's own name.
        best_values = {f"best/{name}": value for name, value in self.best.values.items()}
        for logger in trainer.loggers:
            if not isinstance(logger, TensorBoardLogger):
                logger.log_metrics(best_values, trainer.global_step)
            elif trainer.is_global_zero:
                self._write_tab(logger, best_values, trainer.global_step)

    def _write_tab(
        self, logger: TensorBoardLogger, best_values: Mapping[str, float], step: int
    ) -> None:
        # Imported here, since a run with other loggers may lack TensorBoard.
        from torch.utils.tensorboard.summary import hparams

        writer = logger.experiment
        for summary in hparams(self.settings, dict(best_values)):
            writer.file_writer.add_summary(summary)
        for name, value in best_values.items():
            writer.add_scalar(name, value, step)


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str) else str(value)
