"""Options of Lightning's trainer: each works as documented, or is refused in one sentence."""

from __future__ import annotations

import inspect
import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, final
from unittest.mock import patch

import pytest
import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from torch import Tensor, nn

from datamodules import EvaluationDataModule, PairDataModule
from experiments.cli.trainer_options import check_trainer_options
from experiments.cli.unwritable_defaults import drop_unwritable_defaults
from experiments.plan.settings import Settings
from lightning_modules import ContrastiveEmbedder
from lightning_modules.averaging import check_averaging
from lightning_modules.schedule import (
    num_training_steps,
    schedule,
    schedule_length,
    with_schedule,
)
from mmemb.backbones import load_backbone
from mmemb.storage.shard_index import ShardIndex
from mmemb.training.path_losses import PathLosses
from tests.fixtures.tiny_embedder import clip
from tests.fixtures.tiny_experiment import (
    REPO,
    STAGES,
    run,
    run_pipeline,
    write_experiment,
)
from tests.fixtures.tiny_trainer import rank_of, trainer_of


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
        scheduler = schedule(optimizer, schedule_length(self.trainer), num_warmup_steps=0)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def pairs(root: Path, **changes: Any) -> PairDataModule:
    arguments = {
        "root": str(root), "pairs": ["pairs/plain"], "batch_size": 8, "group_size": 4,
        "source_weights": {}, "seed": 0,
    }  # fmt: skip
    return PairDataModule(**(arguments | changes))


def fitted(folder: Path, root: Path, **options: Any) -> KeysNoted:
    module, trainer = KeysNoted(), trainer_of(folder, **options)
    limit = trainer.limit_train_batches
    trainer.fit(module, datamodule=pairs(root))
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


def defined(root: Path, **options: Any) -> PairDataModule:
    """A data module that has defined its epoch, without a fit."""
    data = pairs(root)
    fixed = {"max_epochs": -1, "limit_val_batches": 0, "reload_dataloaders_every_n_epochs": 0}
    data.trainer = rank_of(0, 1, **(fixed | options))
    data.setup("fit")
    return data


@pytest.mark.parametrize(
    ("options", "share"),
    [
        ({"max_epochs": 2}, 1.0),
        ({"limit_train_batches": 0.5}, 0.5),
        ({"overfit_batches": 0.4, "limit_train_batches": 0.4}, 0.4),
    ],
)
def test_a_share_is_one_of_a_pass(tiny_root: Path, options: dict[str, Any], share: float) -> None:
    total = len(ShardIndex.open(tiny_root / "pairs/plain").entries) // 8
    data = defined(tiny_root, **options)
    assert data.trainer.limit_train_batches == int(share * total) > 1
    data.teardown("fit")
    assert data.trainer.limit_train_batches == options.get("limit_train_batches", 1.0)


def test_an_endless_stream_or_a_number_stay_what_they_are(tiny_root: Path) -> None:
    assert defined(tiny_root).trainer.limit_train_batches == 1.0
    limited = defined(tiny_root, max_epochs=2, limit_train_batches=3)
    assert limited.trainer.limit_train_batches == 3


def test_overfitting_repeats_the_same_batches(tiny_root: Path, tmp_path: Path) -> None:
    module = fitted(tmp_path, tiny_root, max_epochs=3, overfit_batches=2)
    assert module.steps_an_epoch == 2 == len(set(module.keys))
    assert module.keys == 3 * module.keys[:2]
    assert module.validated_at == [2, 4, 6]


def test_an_endless_fit_of_unknown_length_is_refused(tiny_root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not known.*set trainer\.max_steps"):
        fitted(tmp_path, tiny_root, max_epochs=-1)
    data = pairs(tiny_root, pairs=["pipe:cat x.tar"])
    with pytest.raises(ValueError, match=r"have no index.*set trainer\.max_steps"):
        trainer_of(tmp_path, max_epochs=1).fit(KeysNoted(), datamodule=data)
    data.trainer = rank_of(0, 1, overfit_batches=2)
    with pytest.raises(ValueError, match="no batches of theirs can be repeated"):
        data.train_dataloader()


def test_a_plan_counts_the_batches_of_epochs() -> None:
    def batches(**trainer: Any) -> int:
        given = {
            "name": "x",
            "model": {"class_path": "y"},
            "data": {"init_args": {"batch_size": 8}},
        }
        return Settings.of(given | {"trainer": trainer}, "fit", devices=1).training_steps(43)

    assert batches(max_steps=7, max_epochs=2) == 7
    assert batches(max_steps=-1, max_epochs=3) == 15
    assert batches(max_epochs=3, limit_train_batches=0.5) == 6
    assert batches(max_epochs=3, limit_train_batches=4) == 12


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


def test_every_option_of_the_trainer_is_in_the_table() -> None:
    """A release of Lightning that adds one, or drops one, asks for a decision here."""
    text = (REPO / "docs/lightning_options.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| ([\w ]+) \|", text, re.MULTILINE)
    assert [name for name, _ in rows] == list(inspect.signature(Trainer).parameters)
    assert {state for _, state in rows} == {"works", "partly", "deviates", "refused", "no effect"}


@pytest.mark.parametrize(
    ("subcommand", "batches"),
    [("fit", "train"), ("validate", "val"), ("test", "test"), ("predict", "predict")],
)
def test_a_command_without_a_batch_is_refused(subcommand: str, batches: str) -> None:
    limits = {f"limit_{batches}_batches": 0, "default_root_dir": None, "barebones": False}
    with pytest.raises(ValueError, match=rf"limit_{batches}_batches is 0.*would do nothing"):
        check_trainer_options(Namespace(limits), subcommand)


@pytest.mark.parametrize("key", ["max_steps", "max_epochs"])
def test_a_fit_of_no_step_is_refused(key: str) -> None:
    limits = {key: 0, "default_root_dir": None, "barebones": False}
    with pytest.raises(
        ValueError, match=rf"trainer\.{key}.* is 0, so that fit would train nothing"
    ):
        check_trainer_options(Namespace(limits), "fit")


def test_a_warm_up_ends_within_the_fit(capsys: pytest.CaptureFixture[str]) -> None:
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    trainer = rank_of(0, 1, max_steps=20, max_epochs=-1)
    scheduler = with_schedule(optimizer, trainer, 100)["lr_scheduler"]["scheduler"]
    assert "The warm-up has 2 instead of 100 steps, since the fit has 20" in capsys.readouterr().err

    rates = []
    for _ in range(20):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert max(rates) == 1.0
    assert rates[-1] < 0.1


def test_options_that_would_be_ignored_are_refused(tmp_path: Path, tiny_root: Path) -> None:
    (tmp_path / "config.yaml").touch()
    check_trainer_options(Namespace(default_root_dir=str(tmp_path), barebones=False))
    with pytest.raises(ValueError, match="by --runs and --experiment"):
        check_trainer_options(Namespace(default_root_dir="elsewhere", barebones=False))
    with pytest.raises(ValueError, match=r"experiments\.bench"):
        check_trainer_options(Namespace(default_root_dir=None, barebones=True))
    with pytest.raises(ValueError, match="set it to 0"):
        fitted(tmp_path, tiny_root, max_steps=1, reload_dataloaders_every_n_epochs=1)


@pytest.mark.filterwarnings("ignore:.*could not find the monitored key")
def test_train_rows_alone_train_without_validation(
    tiny_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "tasks.json").write_text("[]")
    (root / "pairs").symlink_to(tiny_root / "pairs")
    best = ModelCheckpoint(tmp_path / "best", monitor="val/recall@1")
    options = {"max_steps": 2, "limit_train_batches": 2, "limit_val_batches": 1.0}
    trainer = trainer_of(tmp_path, callbacks=[best], enable_checkpointing=True, **options)
    trainer.fit(module := KeysNoted(), datamodule=pairs(root))
    assert len(module.keys) == 2
    assert module.validated_at == []
    assert caplog.text.count("training without validation, and no checkpoint is chosen by") == 1

    stop = EarlyStopping("val/recall@1")
    trainer = trainer_of(tmp_path, callbacks=[stop], **options)
    with pytest.raises(ValueError, match=r"EarlyStopping watches val/recall@1, but .* no query"):
        trainer.fit(KeysNoted(), datamodule=pairs(root))
    with pytest.raises(FileNotFoundError, match="holds no queries"):
        EvaluationDataModule(str(root), batch_size=8).test_dataloader()


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true"])
def test_a_precision_that_converts_batches_is_refused(
    tiny_root: Path, tmp_path: Path, precision: str
) -> None:
    with pytest.raises(ValueError, match=rf"{precision} .*set it to bf16-mixed"):
        fitted(tmp_path, tiny_root, max_steps=1, precision=precision)


def test_defaults_that_cannot_be_written_stay_what_they_are() -> None:
    init_args = Namespace(device="Unable to serialize instance cpu", name="x")
    config = Namespace(
        trainer=Namespace(callbacks=[Namespace(class_path="y", init_args=init_args)])
    )
    drop_unwritable_defaults(config)
    assert vars(init_args) == {"name": "x"}


def averaged_by(callback: Callback, **limits: Any) -> None:
    """Checks a callback that has copied a module of two parameters."""
    module = nn.Linear(1, 1)
    callback._average_model = deepcopy(module)
    limits = {"max_epochs": 3, "max_steps": -1, "limit_train_batches": 2} | limits
    fixed = {"strategy": None, "accumulate_grad_batches": 1, "callbacks": [callback]}
    check_averaging(limits.pop("module", module), SimpleNamespace(**fixed, **limits))


def test_weights_that_would_not_be_averaged_are_refused() -> None:
    swa = partial(StochasticWeightAveraging, swa_lrs=0.1, swa_epoch_start=2)
    averaged_by(swa())
    averaged_by(swa(), max_steps=7)
    for short in ({"max_epochs": 1}, {"max_epochs": -1, "max_steps": 9}, {"max_steps": 5}):
        with pytest.raises(ValueError, match=r"once an epoch, here from epoch 1 .*max_epochs"):
            averaged_by(swa(), **short)
    averaged_by(EMAWeightAveraging(), max_epochs=-1, max_steps=9)

    grown = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    with pytest.raises(ValueError, match="copies the module before Sequential makes its weights"):
        averaged_by(EMAWeightAveraging(), module=grown)
    frozen = nn.BatchNorm1d(1).eval()
    with pytest.raises(ValueError, match="would reset the statistics"):
        averaged_by(swa(), module=frozen)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*WeightAveraging callback with a model that overrides")
@pytest.mark.filterwarnings("ignore:SWA is currently only supported every epoch")
@pytest.mark.parametrize(
    "callback",
    [
        StochasticWeightAveraging(swa_lrs=0.1, swa_epoch_start=2),
        WeightAveraging(),
        EMAWeightAveraging(decay=0.5),
    ],
)
def test_the_saved_backbone_holds_the_average(
    tiny_root: Path, tmp_path: Path, callback: Callback
) -> None:
    module = ContrastiveEmbedder(
        clip(tmp_path), num_warmup_steps=1, losses=PathLosses(reasoned=0.0)
    )
    trainer = trainer_of(tmp_path, max_epochs=3, limit_train_batches=2, callbacks=[callback])
    before = deepcopy(module.backbone.state_dict())
    trainer.fit(module.train(), datamodule=pairs(tiny_root))

    average = callback._average_model
    average = average.module if isinstance(callback, WeightAveraging) else average
    expected = average.backbone.state_dict()
    saved = load_backbone(str(tmp_path / "backbone")).state_dict()
    assert any(not torch.equal(saved[name], before[name]) for name in saved)
    for name, weight in saved.items():
        torch.testing.assert_close(weight, expected[name])


@pytest.mark.slow
def test_a_callback_whose_default_is_a_device_runs_from_yaml(
    tiny_root: Path, tmp_path: Path
) -> None:
    experiment = write_experiment(tmp_path, tiny_root)
    swa = {
        "class_path": "lightning.pytorch.callbacks.StochasticWeightAveraging",
        "init_args": {"swa_lrs": 0.01, "swa_epoch_start": 1},
    }
    limits = {"max_steps": -1, "max_epochs": 2, "val_check_interval": 1.0, "callbacks+": [swa]}
    overlay = tmp_path / "swa.yaml"
    overlay.write_text(yaml.safe_dump({"trainer": limits}))
    command = experiment.command("trunk", "--runs", str(tmp_path / "runs"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run([*command, "--config", str(overlay)])
    assert (tmp_path / "runs/tiny/trunk/backbone").is_dir()


@pytest.fixture
def deterministic() -> Iterator[list[str]]:
    """The option, which Lightning sets for the whole process."""
    with patch.dict(os.environ):
        yield ["--trainer.deterministic", "true"]
    torch.use_deterministic_algorithms(False)


def test_a_fit_may_be_deterministic(
    tiny_root: Path, tmp_path: Path, deterministic: list[str]
) -> None:
    experiment = write_experiment(tmp_path, tiny_root)
    run(experiment.command("trunk", "--runs", str(experiment.runs), *deterministic))
    assert torch.are_deterministic_algorithms_enabled()
    assert (experiment.folder / "trunk/backbone").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["clip_tiny", "joint"])
def test_every_stage_is_deterministic_on_the_processor(
    tiny_root: Path, tmp_path: Path, deterministic: list[str], backbone: str
) -> None:
    """No operation of theirs is one that torch would refuse."""
    experiment = write_experiment(tmp_path, tiny_root, backbone)
    ran = run_pipeline(experiment, "--until", "gate-test", "--", *deterministic)
    assert ran == list(STAGES)


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
