"""BackboneModule: base of the stages that train a backbone, without their losses.

Low-rank updates, blocks recomputed or compiled, sharding, the optimiser's groups and schedule, and
the folder in which the trained backbone is left.
"""

from __future__ import annotations

import os
from abc import ABC
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import override

from lightning_modules.averaging import check_averaging
from lightning_modules.schedule import with_schedule
from lightning_modules.sharding import gather, save_whole, shard
from mmemb.backbones import Backbone, load_backbone
from mmemb.backbones.base import check_loads_again
from mmemb.distributed import check_on_first_rank
from mmemb.llm.lora import LoraSettings
from mmemb.storage.run_folder import RunFolder
from mmemb.training.blocks import checkpoint_blocks, compile_blocks
from mmemb.training.gradient_cache import GradientCache


class BackboneModule(LightningModule, ABC):
    """Args: see `ContrastiveEmbedder`.

    Raises:
        ValueError: the backbone has no blocks, or takes no low-rank updates.
    """

    def __init__(
        self,
        backbone: Backbone,
        optimizer: OptimizerCallable,
        *,
        num_warmup_steps: int,
        new_parameters_lr_scale: float,
        lora: LoraSettings | None,
        gradient_cache: GradientCache | None,
        gradient_checkpointing: bool,
        compile_backend: str | None,
    ) -> None:
        super().__init__()
        self.backbone, self.optimizer = backbone, optimizer
        self.num_warmup_steps, self.new_parameters_lr_scale = (
            num_warmup_steps,
            new_parameters_lr_scale,
        )
        self.gradient_cache, self._recomputes = gradient_cache, gradient_checkpointing

        if lora is not None:
            # The seed of `seed_everything`: equal on all ranks, another start for every seed.
            backbone.attach_lora(lora, seed=int(os.environ.get("PL_GLOBAL_SEED", "0")))

        if (gradient_checkpointing or compile_backend) and not backbone.blocks():
            raise ValueError(
                f"{type(backbone).__name__} names no blocks: gradient_checkpointing and "
                "compile_backend have nothing to work on. Leave them out, or give it `blocks`."
            )
        if compile_backend:
            compile_blocks(backbone.blocks(), compile_backend)
        if gradient_checkpointing:
            checkpoint_blocks(backbone.blocks())

        # In a tuple: the same module must not be registered twice.
        self._twin: tuple[Backbone, ...] = ()

    def start_from(self, folder: Path) -> None:
        """Takes the weights of a saved backbone, before a fit begins.

        Raises:
            ValueError: they are those of another kind of backbone; see `Backbone.take_weights`.
        """
        # It is built a second time, which must not change the random numbers of the training.
        with isolate_rng():
            self.backbone.take_weights(load_backbone(str(folder)), str(folder))

    @override
    def setup(self, stage: str) -> None:
        # Else hours of training could end in a folder that does not load. The check builds the
        # backbone a second time, which must not change the random numbers of the training.
        if stage == "fit":
            with isolate_rng():
                check_on_first_rank(partial(check_loads_again, self.backbone))

    @override
    def configure_model(self) -> None:
        if self.device_mesh is None or self._twin:
            return
        if loose := [name for name, p in self.named_parameters(recurse=False) if p.requires_grad]:
            raise ValueError(
                f"{loose[0]} is trained, but lies outside of the backbone, which alone is sharded: "
                "set learn_temperature to false, or train with strategy ddp."
            )
        self._twin = (shard(self.backbone, self.device_mesh, self.trainer.precision),)

    @override
    def on_fit_start(self) -> None:
        check_averaging(self, self.trainer)
        if self.gradient_cache is None and not self._recomputes:
            return

        for name, module in self.backbone.named_modules():
            if isinstance(module, _BatchNorm) and module.training:
                raise ValueError(
                    f"{name} is a batch normalisation in training mode: its vectors depend on the "
                    "whole batch, and running it twice changes it. Leave gradient_cache and "
                    "gradient_checkpointing out, or choose a backbone without it."
                )

    @override
    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self._parameter_groups())
        return with_schedule(optimizer, self.trainer, self.num_warmup_steps)

    def _parameter_groups(self) -> list[dict[str, Any]]:
        # Untrained parts need a higher rate than those that were trained by others.
        new = {id(p) for p in self.backbone.new_parameters()}
        trained = [p for p in self.parameters() if p.requires_grad]

        # An optimiser is asked for its default: the rate stands in a partial function of the user.
        lr = self.optimizer([nn.Parameter(torch.zeros(1))]).defaults["lr"]
        groups = [
            {"name": "old", "params": [p for p in trained if id(p) not in new]},
            {
                "name": "new",
                "params": [p for p in trained if id(p) in new],
                "lr": lr * self.new_parameters_lr_scale,
            },
        ]
        return [group for group in groups if group["params"]]

    @override
    def on_validation_start(self) -> None:
        gather(self.backbone)

    on_test_start = on_predict_start = on_validation_start

    @override
    def on_train_end(self) -> None:
        # Gathered on all ranks, written by one.
        twin = self._twin[0] if self._twin else None
        (folder,) = self.products("fit")
        save_whole(self.backbone, twin, folder, writes=self.trainer.is_global_zero)

    def products(self, stage: str) -> list[Path]:
        """The trained backbone; see `mmemb.storage.products.Producer`."""
        return [RunFolder(Path(self.trainer.default_root_dir)).backbone] if stage == "fit" else []
