"""The configuration of a stage as its plan reads it: arguments, devices, precision, saved files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, TypeVar, final

from experiments.plan.memory import ModelShape, Training
from experiments.plan.precisions import FP32, PRECISIONS
from experiments.plan.stages import StagePlan
from mmemb.training.gradient_cache import GradientCache

_Record = TypeVar("_Record")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The configuration of one stage, resolved, as plain data.

    Attributes:
        name: of the stage.
        subcommand: `fit`, `predict` or `test`.
        kind: class of the model.
        model: arguments of the model.
        data: arguments of the data module.
        trainer: arguments of the trainer.
        ranks: devices.
    """

    name: str
    subcommand: str
    kind: str
    model: Mapping[str, Any]
    data: Mapping[str, Any]
    trainer: Mapping[str, Any]
    ranks: int

    @classmethod
    def of(cls, config: Mapping[str, Any], subcommand: str, devices: int | None) -> Settings:
        """Reads a configuration; `devices` stand in place of those of the trainer."""
        return cls(
            name=str(config["name"]),
            subcommand=subcommand,
            kind=class_of(config["model"]),
            model=config["model"].get("init_args") or {},
            data=config["data"].get("init_args") or {},
            trainer=config["trainer"],
            ranks=devices or num_devices(config["trainer"]),
        )

    @property
    def title(self) -> str:
        """Name of the run."""
        return f"{self.name} {self.subcommand}"

    @property
    def root(self) -> Path:
        """Folder of the data."""
        return Path(self.data["root"])

    @property
    def batch(self) -> int:
        """Rows of a batch: in `fit` of all ranks together, else of each."""
        if (size := int(self.data["batch_size"])) < 1:
            raise ValueError(f"data.batch_size must be 1 or more, got {size}.")
        return size

    @property
    def rows(self) -> int:
        """Rows of a training batch on one rank."""
        return max(1, self.batch // self.ranks)

    @property
    def cache(self) -> GradientCache | None:
        """The way a training batch is cut; None = it is not."""
        return record(GradientCache, self.model.get("gradient_cache"))

    def training_steps(self, samples: int) -> int:
        """Returns the batches of `fit`; an epoch is one pass over the samples, unless a number of
        batches is set."""
        if (steps := int(self.trainer.get("max_steps") or -1)) > 0:
            return steps

        # A whole number of `limit_train_batches` is a count, a fraction a share of the epoch.
        limit = self.trainer.get("limit_train_batches")
        of_pass = max(1, samples // self.batch)
        of_epoch = limit if isinstance(limit, int) else int(of_pass * (limit or 1.0))
        return of_epoch * int(self.trainer.get("max_epochs") or 1)

    def reading(self, samples: int, model: ModelShape, precision: str, **parts: Any) -> StagePlan:
        """Returns the plan of a stage whose ranks read the samples once, without a backward pass.

        Args:
            samples: rows of the data.
            model: reads them.
            precision: key of `PRECISIONS`.
            parts: further fields of the plan.
        """
        return StagePlan(
            name=self.title,
            samples=samples,
            steps=ceil(samples / (self.batch * self.ranks)),
            rows=self.batch,
            micro_rows=self.batch,
            model=model,
            training=Training(precision=precision, devices=self.ranks),
            trains=False,
            **parts,
        )

    def training(self, dtype: str, padded: bool = True) -> Training:
        """Returns how `fit` computes a step with weights of a type."""
        cache = self.cache
        return Training(
            precision=precision_of(dtype, self.trainer.get("precision")),
            checkpointing=bool(self.model.get("gradient_checkpointing")),
            padded=padded,
            moments=num_moments(self.model.get("optimizer")),
            strategy=self._strategy,
            devices=self.ranks,
            retained_gib=cache.retained_gib if cache else 0.0,
        )

    @property
    def _strategy(self) -> str:
        strategy = self.trainer.get("strategy") or "auto"
        name = strategy if isinstance(strategy, str) else str(strategy.get("class_path"))
        if "ModelParallel" in name or "fsdp" in name.lower():
            return "fsdp2"
        return "ddp" if self.ranks > 1 else "single"

    def saved(self, model: ModelShape, training: Training, folder: str) -> dict[str, int]:
        """Returns the bytes that `fit` leaves: checkpoints, and the weights in a folder of its
        run."""
        weight = PRECISIONS[training.precision].weight
        weights, updates = weight * model.total, FP32 * model.updates
        one = weights + updates + training.moments * (weight * model.trainable + updates)

        # A checkpoint holds weights and moments; the folder of a LoRA run its updates alone.
        copies = 0
        for callback in self.trainer.get("callbacks") or []:
            if class_of(callback) == "ModelCheckpoint":
                arguments = callback.get("init_args") or {}
                best = arguments.get("save_top_k", 1)
                # The last one, and the one before it (`WholeCheckpointIO`).
                copies += 2 * bool(arguments.get("save_last"))
                copies += max(0, int(1 if best is None else best))
        return {f"{copies} checkpoint(s)": copies * one, folder: weights or updates}


def class_of(spec: Mapping[str, Any]) -> str:
    """Returns the last name of a `class_path`.

    >>> class_of({"class_path": "torch.optim.SGD"})
    'SGD'
    """
    return str(spec["class_path"]).rpartition(".")[2]


def record(kind: type[_Record], value: Any) -> _Record | None:
    """Returns a record, from an object of it or from plain data; None stays None.

    >>> record(GradientCache, {"init_args": {"micro_batch_size": 4}}).micro_batch_size
    4
    """
    if value is None or isinstance(value, kind):
        return value
    data = value.get("init_args") or value
    return kind(**{key: tuple(x) if isinstance(x, list) else x for key, x in data.items()})


def num_devices(trainer: Mapping[str, Any]) -> int:
    """Returns `trainer.devices` times `num_nodes`; a value that leaves the number open is one.

    >>> num_devices({"devices": "auto"}), num_devices({"devices": [0, 1], "num_nodes": 2})
    (1, 4)
    """
    devices = trainer.get("devices")
    if isinstance(devices, list):
        count = len(devices)
    else:
        count = int(devices) if str(devices).isdigit() and int(devices) > 0 else 1
    return count * int(trainer.get("num_nodes") or 1)


def num_moments(optimizer: Any) -> int:
    """Returns the numbers that an optimiser keeps for each trained one: 2, but for SGD.

    >>> num_moments({"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.9}})
    1
    """
    settings = optimizer if isinstance(optimizer, Mapping) else {"class_path": str(optimizer)}
    if class_of(settings) == "SGD":
        return int(bool((settings.get("init_args") or {}).get("momentum")))
    return 2


def precision_of(dtype: str, trainer: str | None) -> str:
    """Returns the key of `PRECISIONS` for weights of a type under a trainer's `precision`.

    >>> precision_of("float32", "bf16-mixed"), precision_of("float32", None)
    ('mixed', 'float32')
    """
    # Weights of half precision stay so, whatever a mixed trainer casts.
    precision = str(trainer or "32-true")
    if precision.endswith("-mixed") and dtype == "float32":
        return "mixed"
    if precision in ("bf16-true", "bf16", "16-true"):
        return "bfloat16"
    if dtype not in PRECISIONS:
        raise ValueError(f"dtype must be one of float32, bfloat16, float16, got {dtype!r}.")
    return dtype
