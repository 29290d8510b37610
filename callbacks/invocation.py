"""InvocationRatio: share of queries that reasoned, and the tokens that this took."""

from __future__ import annotations

from typing import Any, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torchmetrics import Metric
from typing_extensions import override

from mmemb.records.outputs import step_output
from mmemb.records.precision import float64_device, to_float64_device


@final
class InvocationMeter(Metric):
    """Four sums over ranks: queries, eligible ones, ones that reasoned, tokens."""

    full_state_update = False
    sums_4: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums_4", torch.zeros(4, dtype=torch.float64), dist_reduce_fx="sum")

    @override
    def update(self, depths_B: Tensor, tokens_B: Tensor, eligible_B: Tensor) -> None:
        """Adds one batch of decisions."""
        count = depths_B.new_full((), len(depths_B))
        counts = [count, eligible_B.sum(), (depths_B > 0).sum(), tokens_B.sum()]

        # Not in place: a tensor made in inference mode could not be added to.
        sums_4 = torch.stack([to_float64_device(count).double() for count in counts])
        self.sums_4 = self.sums_4 + sums_4.to(self.device)

    @override
    def compute(self) -> dict[str, float]:
        """Ratios over all ranks; none where no rank has seen a decision. Collective."""
        total, eligible, reasoned, tokens = self.sums_4.tolist()
        if not total:
            return {}

        return {
            "invocation_ratio": reasoned / max(eligible, 1),
            "invocation_ratio_all": reasoned / total,
            "reasoning_tokens": tokens / total,
        }


@final
class InvocationRatio(Callback):
    """Logs `split/invocation_ratio` (over eligible queries), `split/invocation_ratio_all` and
    `split/reasoning_tokens` (per query) for train, val and test, once an epoch."""

    def __init__(self) -> None:
        self.meters = {split: InvocationMeter() for split in ("train", "val", "test")}

    def _add(self, split: str, outputs: Any) -> None:
        decisions = step_output(outputs).decisions
        if decisions is not None:
            self.meters[split].update(*decisions)

    def _log(self, split: str, trainer: Trainer, pl_module: LightningModule) -> None:
        none = torch.zeros(0)
        # NCCL sums on the device only.
        self.meters[split].to(float64_device(pl_module.device))
        self.meters[split].update(none, none, none)  # a rank without rows takes part, unwarned
        values = self.meters[split].compute()
        self.meters[split] = InvocationMeter()

        if not trainer.sanity_checking:
            metrics = {f"{split}/{name}": value for name, value in values.items()}
            pl_module.log_dict(metrics, sync_dist=True)  # equal on all ranks, or Lightning warns

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._add("train", outputs)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log("train", trainer, pl_module)

    @override
    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any
    ) -> None:
        self._add("val", outputs)

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log("val", trainer, pl_module)

    @override
    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any
    ) -> None:
        self._add("test", outputs)

    @override
    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log("test", trainer, pl_module)
