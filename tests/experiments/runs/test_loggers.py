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
from experiments.runs.loggers import LogFolders, keep_checkpoints_in, place_loggers
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


def placed(folders: LogFolders, *configured: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The arguments of loggers, each given as its class and its arguments."""
    blocks = [Namespace(class_path=c, init_args=Namespace(**given)) for c, given in configured]
    place_loggers(Namespace(logger=blocks), folders, "1-trunk-x")
    return [vars(block.init_args) for block in blocks]


def test_relative_folders_of_loggers_lie_in_the_run_folder(tmp_path: Path) -> None:
    run_folder, elsewhere = tmp_path / "runs/tiny/run", str(tmp_path / "elsewhere")
    folders = LogFolders.of(run_folder, tmp_path / "runs", None)
    found = placed(folders, *(("x", {"save_dir": f}) for f in (".", "./mlruns", elsewhere, None)))
    assert [given["save_dir"] for given in found] == [
        str(run_folder), str(run_folder / "mlruns"), elsewhere, None,
    ]  # fmt: skip
    for none in (None, True, False):
        place_loggers(Namespace(logger=none), folders, "1-trunk-x")

    kept = ModelCheckpoint(dirpath=elsewhere)
    trainer = SimpleNamespace(checkpoint_callbacks=[moved := ModelCheckpoint(), kept])
    keep_checkpoints_in(trainer, run_folder)
    assert moved.dirpath == str(run_folder / "checkpoints")
    assert kept.dirpath == elsewhere


def test_with_one_folder_of_logs_runs_stay_apart_and_stores_are_shared(tmp_path: Path) -> None:
    shared = tmp_path / "logs"
    folders = LogFolders.of(tmp_path / "runs/tiny/1-trunk-x", tmp_path / "runs", str(shared))
    csv, wandb, named, mlflow, served = placed(
        folders,
        ("lightning.pytorch.loggers.CSVLogger", {"save_dir": ".", "name": "csv"}),
        ("lightning.pytorch.loggers.WandbLogger", {"save_dir": ".", "name": None}),
        ("lightning.pytorch.loggers.WandbLogger", {"save_dir": ".", "name": "mine"}),
        ("lightning.pytorch.loggers.MLFlowLogger", {"save_dir": "./mlruns", "run_name": None}),
        ("MLFlowLogger", {"save_dir": ".", "run_name": "mine", "tracking_uri": "http://host"}),
    )
    assert csv == {"save_dir": str(shared / "tiny/1-trunk-x"), "name": "csv"}
    assert wandb == {"save_dir": str(shared), "name": "1-trunk-x"}
    assert named["name"] == "mine"
    assert mlflow == {
        "save_dir": str(shared / "mlruns"),
        "run_name": "1-trunk-x",
        "tracking_uri": f"sqlite:///{shared}/mlruns/mlflow.db",  # files are refused since MLflow 3
        "artifact_location": str(shared / "mlruns/artifacts"),
    }
    assert (served["tracking_uri"], served["run_name"]) == ("http://host", "mine")


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
    logs = tmp_path / "logs"
    shared = fit_trunk(experiment, tmp_path / "shared", "--log_folder", str(logs))
    assert not list(shared.glob("events*"))
    assert list((logs / "tiny" / shared.name).glob("events*"))


def fit_trunk(experiment: Experiment, runs: Path, *more: str) -> Path:
    run(experiment.command("trunk", "--runs", str(runs), *more))
    return (runs / "tiny/trunk").resolve()
