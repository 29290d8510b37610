"""TrainingHealth: measures of a training batch, waiting times, and a stop at a broken loss."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from typing_extensions import override

from mmemb.losses.ids import PairIds
from mmemb.records.batches import PairBatch, as_pairs
from mmemb.records.outputs import PairOutput, step_output
from mmemb.storage.json_files import write_json
from mmemb.training.batch_health import batch_health

BROKEN = "nonfinite.json"
MOST_ROWS = 1024
"""Rows of a batch that are measured: measuring must not cost as much as a step."""


@final
class Stopwatch:
    """Share of the time that is spent waiting for data, and rows and tokens a second."""

    def __init__(self) -> None:
        self._started: float | None = None
        self._ended: float | None = None
        self.waiting = self.working = 0.0
        self.rows = self.tokens = 0

    def start(self) -> None:
        """Notes that a batch has come."""
        self._started = time.perf_counter()
        if self._ended is not None:
            self.waiting += self._started - self._ended

    def stop(self, rows: int, tokens: int) -> None:
        """Notes that its step is done."""
        self._ended = time.perf_counter()
        if self._started is not None:
            self.working += self._ended - self._started
        self.rows, self.tokens = self.rows + rows, self.tokens + tokens

    def read(self) -> dict[str, float]:
        """Returns the measures of this rank since the last reading, and starts anew."""
        seconds = self.waiting + self.working
        measures = {
            "data_wait_share": self.waiting / seconds,
            "samples_per_second": self.rows / seconds,
            "tokens_per_second": self.tokens / seconds,
        }

        self.waiting = self.working = 0.0
        self.rows = self.tokens = 0
        # Empty where no step was timed since the last reading.
        return measures if seconds > 0 else {}


@final
class TrainingHealth(Callback):
    """Logs every `log_every_n_steps` steps of a `fit` over pairs, below `train/`:
    `in_batch_accuracy`, `positive_negative_gap`, `effective_rank`, `masked_share`, `loss/GROUP`,
    `temperature`, `grad_norm/GROUP`, `data_wait_share`, `samples_per_second`, `tokens_per_second`.
    Values are per rank (no collective), except the norms of sharded gradients.

    A loss that is not finite stops the run before the optimiser sees it; `nonfinite.json` in the
    run folder lists the samples of the batch.
    """

    def __init__(self) -> None:
        self._watch = Stopwatch()
        self._batch: PairBatch | None = None

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._batch = as_pairs(batch)
        self._watch.start()

    @override
    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        # Before the backward pass: afterwards every gradient would be broken, too.
        if self._batch is not None and not torch.isfinite(loss):
            self._stop(trainer, self._batch, float(loss.detach()))

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        if self._batch is None or not _is_due(trainer, trainer.global_step + 1):
            return

        # Lightning clips after this hook, so these are the norms before clipping.
        norms = {
            f"train/grad_norm/{group.get('name', number)}": _norm(group["params"])
            for number, group in enumerate(optimizer.param_groups)
        }
        pl_module.log_dict(norms)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        output = step_output(outputs).pairs
        if output is None:
            return

        self._watch.stop(len(batch.keys), sum(batch.costs()))
        # The optimiser's step has counted: due are the steps that Lightning itself logs.
        if not _is_due(trainer, trainer.global_step):
            return

        values = dict(self._watch.read()) | {"temperature": float(output.temperature)}
        values |= _health(output, batch, values["temperature"])
        pl_module.log_dict(
            {f"train/{name}": value for name, value in values.items()}, batch_size=len(batch.keys)
        )

    def _stop(self, trainer: Trainer, batch: PairBatch, loss: float) -> None:
        run = Path(trainer.default_root_dir)
        # A file for each rank: each has rows of its own, and several may fail at once.
        path = run / (BROKEN if trainer.is_global_zero else f"rank{trainer.global_rank}-{BROKEN}")

        record = {"step": batch.step, "rank": trainer.global_rank, "loss": str(loss)}
        write_json(path, record | {"keys": list(batch.keys)})

        raise ValueError(
            f"The loss of step {batch.step} is {loss}: no weight was changed by it. The keys of "
            f"its samples are in {path}. Look at them with `python -m experiments.show batch "
            f"--config {run}/config.yaml --step {batch.step}`. Usual causes: a learning rate that "
            "is too high, half precision, a temperature near 0."
        )


def _health(output: PairOutput, batch: PairBatch, temperature: float) -> dict[str, float]:
    health = batch_health(
        output.query_BD[:MOST_ROWS],
        output.target_BD[:MOST_ROWS],
        PairIds.from_batch(batch),
        temperature=temperature,
    )
    return dict(health.scalars(batch.sources[:MOST_ROWS]))


def _is_due(trainer: Trainer, step: int) -> bool:
    """True if numbers are logged at a step; with `log_every_n_steps: 0` they never are."""
    return trainer.log_every_n_steps > 0 and step % trainer.log_every_n_steps == 0


def _norm(parameters: list[Tensor]) -> Tensor:
    # A parameter without a gradient took no part in this step, such as a frozen one.
    squares = [p.grad.float().pow(2).sum() for p in parameters if p.grad is not None]
    total = torch.stack(squares).sum().sqrt() if squares else torch.zeros(())
    return total.full_tensor() if isinstance(total, DTensor) else total
