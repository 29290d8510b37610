"""Any logger of Lightning: texts and figures for those that take them, files in the run folder."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any, final

import pytest
import yaml
from jsonargparse import Namespace
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import HParams, RecallAtK
from experiments.runs.loggers import keep_checkpoints_in, place_loggers
from mmemb.media.loggers import log_figure, log_text
from tests.fixtures.echo_module import ONE, Boring, split
from tests.fixtures.tiny_experiment import Experiment, run, write_experiment
from tests.fixtures.tiny_trainer import trainer_of


@final
class NumbersAlone(Logger):
    """Notes numbers and settings; its experiment takes neither texts nor figures."""

    name, version = "numbers", "0"

    def __init__(self, save_dir: str = ".") -> None:
        super().__init__()
        self.save_dir_given = save_dir
        self.metrics: dict[str, float] = {}
        self.settings: dict[str, Any] = {}

    @property
    def experiment(self) -> object:
        return object()

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.metrics |= metrics

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.settings |= params


@final
class Noted:
    """A logger or a client of one, whose methods note what they were given."""

    def __init__(self, *methods: str) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.experiment, self.run_id = self, "run"
        for method in methods:
            setattr(self, method, lambda *a, m=method, **k: self.calls.append((m, *a, *k.items())))


class WandbLogger(Noted):
    """By its name it is taken for Lightning's."""


class MLFlowLogger(Noted):
    """By its name it is taken for Lightning's."""


def test_texts_and_figures_go_to_those_who_take_them() -> None:
    board = Noted("add_text", "add_figure")
    wandb, mlflow = WandbLogger("log_text", "log_image"), MLFlowLogger("log_text", "log_figure")
    loggers = [board, NumbersAlone(), wandb, mlflow]
    log_text(loggers, "val/tasks", "words", 3)
    log_figure(loggers, "val/best", lambda: "figure", 3)
    assert board.calls == [
        ("add_text", "val/tasks", "words", 3),
        ("add_figure", "val/best", "figure", 3),
    ]
    assert wandb.calls == [
        ("log_text", "val/tasks", ["text"], [["words"]], ("step", 3)),
        ("log_image", "val/best", ["figure"], ("step", 3)),
    ]
    assert mlflow.calls == [
        ("log_text", "run", "words", "val/tasks-3.md"),
        ("log_figure", "run", "figure", "val/best-3.png"),
    ]
    log_figure([NumbersAlone()], "x", lambda: pytest.fail("drawn for no logger"), 0)


def test_several_loggers_at_once(tmp_path: Path) -> None:
    board = TensorBoardLogger(str(tmp_path), name="", version="")
    loggers = [CSVLogger(tmp_path, name="csv", version=""), numbers := NumbersAlone(), board]
    settings = {"data.batch_size": 8}
    trainer = trainer_of(tmp_path, callbacks=[RecallAtK((1,)), HParams(settings)], logger=loggers)
    trainer.test(Boring(), datamodule=split({1: ONE}), verbose=False)
    with (tmp_path / "csv/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = {name for row in rows for name, value in row.items() if value}
    assert {"test/recall@1", "best/test/recall@1"} <= found
    assert {"test/recall@1", "best/test/recall@1"} <= numbers.metrics.keys()
    assert "val/recall@1" not in numbers.metrics
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert "test/tasks/text_summary" in events.Tags()["tensors"]


def test_settings_go_to_every_logger_of_a_fit(tmp_path: Path) -> None:
    numbers = NumbersAlone()
    callback = HParams({"data.batch_size": 8})
    trainer = trainer_of(tmp_path, callbacks=[callback], logger=numbers, max_steps=1)
    trainer.fit(Boring(), datamodule=split({1: ONE}))
    assert numbers.settings == {"data.batch_size": 8}


def test_relative_folders_of_loggers_lie_in_the_run_folder(tmp_path: Path) -> None:
    def configured(*folders: Any) -> list[Namespace]:
        return [Namespace(class_path="x", init_args=Namespace(save_dir=f)) for f in folders]

    run_folder, elsewhere = tmp_path / "run", str(tmp_path / "elsewhere")
    several = Namespace(logger=configured(".", "./mlruns", elsewhere, None))
    place_loggers(several, run_folder)
    placed = [logger.init_args.save_dir for logger in several.logger]
    assert placed == [str(run_folder), str(run_folder / "mlruns"), elsewhere, None]
    for none in (None, True, False):
        place_loggers(Namespace(logger=none), run_folder)

    kept = ModelCheckpoint(dirpath=elsewhere)
    trainer = SimpleNamespace(checkpoint_callbacks=[moved := ModelCheckpoint(), kept])
    keep_checkpoints_in(trainer, run_folder)
    assert moved.dirpath == str(run_folder / "checkpoints")
    assert kept.dirpath == elsewhere


@pytest.mark.slow
def test_the_command_line_takes_loggers(tiny_root: Path, tmp_path: Path) -> None:
    experiment = write_experiment(tmp_path, tiny_root)
    overlay = tmp_path / "loggers.yaml"
    loggers = [
        {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "."}},
        {"class_path": "tests.experiments.runs.test_loggers.NumbersAlone"},
    ]
    overlay.write_text(yaml.safe_dump({"trainer": {"logger": loggers}}))
    found = fit_trunk(experiment, tmp_path / "runs", "--config", str(overlay))
    assert (found / "lightning_logs/version_0/metrics.csv").is_file()
    assert list((found / "checkpoints").glob("*.ckpt"))
    assert not list(found.glob("events*"))
    config = yaml.safe_load((found / "config.yaml").read_text())
    assert config["trainer"]["logger"][0]["init_args"]["save_dir"] == "."
    none = fit_trunk(experiment, tmp_path / "silent", "--trainer.logger", "false")
    assert not list(none.glob("events*"))


def fit_trunk(experiment: Experiment, runs: Path, *more: str) -> Path:
    run(experiment.command("trunk", "--runs", str(runs), *more))
    return (runs / "tiny/trunk").resolve()
