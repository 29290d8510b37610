"""Options of Lightning's trainer: each works as documented, or is refused in one sentence."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, final

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import Tensor, nn

from datamodules import PairDataModule
from lightning_modules.schedule import num_training_steps, schedule, schedule_length
from mmemb.shards import ShardIndex
from tests.tiny_experiment import run, write_experiment
from tests.tiny_trainer import trainer_of


@final
class KeysNoted(LightningModule):
    """Trains one number; notes the keys of every batch, the learning rate, and validations."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.keys: list[tuple[str, ...]] = []
        self.rates: list[float] = []
        self.validated_at: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.keys.append(batch.keys)
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        return self.layer(torch.ones(1)).sum()

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        if (step := self.global_step) not in self.validated_at:
            self.validated_at.append(step)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
        scheduler = schedule(optimizer, schedule_length(self.trainer), num_warmup=0)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def pairs(root: Path, **changes: Any) -> PairDataModule:
    arguments = {
        "root": str(root), "pairs": ["pairs/plain"], "batch_size": 8, "group_size": 4,
        "group_weights": {}, "seed": 0,
    }  # fmt: skip
    return PairDataModule(**(arguments | changes))


def fitted(folder: Path, root: Path, size: int = 8, **options: Any) -> KeysNoted:
    module, trainer = KeysNoted(), trainer_of(folder, **options)
    limit = trainer.limit_train_batches
    trainer.fit(module, datamodule=pairs(root, batch_size=size, group_size=size // 2))
    module.steps_an_epoch = trainer.num_training_batches
    assert trainer.limit_train_batches == limit, "given back"
    return module


def test_an_epoch_is_one_pass_and_the_rate_decays(tiny_root: Path, tmp_path: Path) -> None:
    rows = len(ShardIndex.open(tiny_root / "pairs/plain").entries)
    module = fitted(tmp_path, tiny_root, max_epochs=2, limit_val_batches=1)
    assert module.steps_an_epoch == rows // 8 > 1
    assert len(module.keys) == 2 * (rows // 8)
    assert len(set(module.keys)) == len(module.keys), "another order in every epoch"
    assert module.rates[0] == 1.0
    assert 0.05 < module.rates[-1] < 0.2
    assert module.validated_at == [rows // 8, 2 * (rows // 8)]


def test_a_share_of_an_epoch_and_both_limits(tiny_root: Path, tmp_path: Path) -> None:
    half = fitted(tmp_path, tiny_root, max_epochs=2, limit_train_batches=0.5)
    whole = fitted(tmp_path, tiny_root, max_epochs=2, max_steps=3)
    assert half.steps_an_epoch == whole.steps_an_epoch // 2
    assert len(whole.keys) == 3


@pytest.mark.parametrize(("share", "size"), [(2, 8), (0.3, 2)])
def test_overfitting_repeats_the_same_batches(
    tiny_root: Path, tmp_path: Path, share: float, size: int
) -> None:
    module = fitted(tmp_path, tiny_root, size, max_epochs=3, overfit_batches=share)
    num = module.steps_an_epoch
    assert 1 < num == len(set(module.keys))
    assert module.keys == 3 * module.keys[:num]
    assert module.validated_at == [num, 2 * num, 3 * num]


def test_an_endless_fit_of_unknown_length_is_refused(tiny_root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not known.*set trainer\.max_steps"):
        fitted(tmp_path, tiny_root, max_epochs=-1)
    data = pairs(tiny_root, pairs=["pipe:cat x.tar"])
    with pytest.raises(ValueError, match=r"have no index.*set trainer\.max_steps"):
        trainer_of(tmp_path, max_epochs=1).fit(KeysNoted(), datamodule=data)


def test_steps_are_counted_with_their_accumulation(tmp_path: Path) -> None:
    def steps(**options: Any) -> int | None:
        return num_training_steps(trainer_of(tmp_path, **options))

    assert steps(max_steps=5) == 5
    assert steps(max_epochs=3, limit_train_batches=5, accumulate_grad_batches=2) == 9
    assert steps(max_epochs=3, limit_train_batches=5, max_steps=7) == 7
    assert steps(max_epochs=3) is None
    growing = GradientAccumulationScheduler({0: 1, 1: 5})
    assert steps(max_epochs=3, limit_train_batches=5, callbacks=[growing]) == 7


def contents(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.slow
def test_a_development_run_keeps_nothing(
    tiny_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    experiment = write_experiment(tmp_path, tiny_root)
    for stage in ("trunk", "features"):
        command = experiment.command(stage, "--runs", str(tmp_path / "runs"))
        run([*command, "--trainer.fast_dev_run", "true"])
        assert "ran 1 batch(es), nothing is kept" in capsys.readouterr().out
    assert not contents(tmp_path / "temporary")
    assert not (tmp_path / "runs").exists() or not contents(tmp_path / "runs")
