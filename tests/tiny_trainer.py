"""A quiet Trainer on one or two forked gloo ranks, and loaders whose ranks differ in length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, final

from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import DDPStrategy


def trainer_of(folder: Path, world: int = 1, **kwargs: Any) -> Trainer:
    """A Trainer that writes nothing but what callbacks and modules write themselves, and that
    does not validate unless told to."""
    strategy = (
        DDPStrategy(
            start_method="fork", process_group_backend="gloo", timeout=timedelta(seconds=20)
        )
        if world > 1
        else "auto"
    )
    quiet = dict.fromkeys(
        ("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "logger"), False
    )
    return Trainer(
        **{
            "accelerator": "cpu",
            "devices": world,
            "strategy": strategy,
            "use_distributed_sampler": False,
            "num_sanity_val_steps": 0,
            "limit_val_batches": 0,
            "log_every_n_steps": 1,
            "default_root_dir": str(folder),
            **quiet,
            **kwargs,
        }
    )


def rank_of(rank: int, world: int, **options: Any) -> SimpleNamespace:
    """What a data module asks of a trainer on one rank, where no trainer runs."""
    limits = {f"limit_{stage}_batches": 1.0 for stage in ("train", "val", "test", "predict")}
    limits["precision_plugin"] = Precision()
    place = {"global_rank": rank, "world_size": world, "fast_dev_run": False, "overfit_batches": 0}
    return SimpleNamespace(**(limits | place | options))


@final
class Items:
    """A loader without a length, as ours are on several ranks."""

    def __init__(self, items: Sequence[Any]) -> None:
        self._items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)


@final
class Stub(LightningDataModule):
    """Hands out what `loaders[stage](rank, world)` gives; `facts` are those trained on."""

    def __init__(self, facts: Sequence[str] = (), **loaders: Callable[[int, int], Any]) -> None:
        super().__init__()
        self._loaders = loaders
        self.fitted_facts, self.calibrated_facts = frozenset(facts), frozenset[str]()

    def _load(self, stage: str) -> Any:
        found = self._loaders[stage](self.trainer.global_rank, self.trainer.world_size)
        return [Items(x) for x in found] if isinstance(found, tuple) else Items(found)

    def train_dataloader(self) -> Any:
        return self._load("train")

    def val_dataloader(self) -> Any:
        return self._load("val")

    def test_dataloader(self) -> Any:
        return self._load("test")

    def predict_dataloader(self) -> Any:
        return self._load("predict")
