"""Every command that writes, on tiny data: what the kill harness runs, and where each writes."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, final
from unittest.mock import patch

import yaml

from tests.tiny_experiment import (
    CLIP_TINY,
    POCKET,
    SMALL,
    SMALL_FIT,
    STAGES,
    Experiment,
    in_process,
    merged,
    run,
    settings_kept,
    write_experiment,
)

MORE_STAGES = {
    "benchmark": ("test", "benchmark"),
    "negatives": ("predict", "mine_negatives"),
    "teacher": ("predict", "teacher"),
    "generator": ("fit", "generator"),
}
"""Stage -> subcommand and YAML file, of those that are not in the pipeline's file."""


@final
@dataclass(frozen=True, slots=True)
class Writer:
    """A command that writes, and the folder below which it does."""

    run: Callable[[], Any]
    folder: Path


@final
class Site:
    """Tiny inputs, and every command on them.

    Args:
        folder: new; inputs lie in `inputs`, products in the other folders.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.inputs = folder, folder / "inputs"
        self.inputs.mkdir(parents=True)

    def writer(self, name: str) -> Writer:
        """A command of `WRITERS`, with its inputs; one of a stage needs the products of those
        before it."""
        return WRITERS[name](self)

    @cached_property
    def experiment(self) -> Experiment:
        """The tiny experiment of the pipeline's stages; nothing of it has run."""
        from tests.tiny import write_tiny
        from tests.tiny_models import write_tiny_models

        root = write_tiny_models(write_tiny(self.inputs / "tiny"))
        written = write_experiment(self.inputs / "experiment", root)
        for name in ("trunk", "embedder"):
            _save_every_step(written.overlays / f"{name}.yaml", root)
        return replace(written, runs=self.folder / "runs")

    def stage(self, name: str) -> Writer:
        """A stage of the pipeline's file."""
        runs = self.experiment.runs
        command = self.experiment.command(name, "--runs", str(runs))
        return Writer(lambda: run(command), runs)

    def another_stage(self, name: str) -> Writer:
        """A stage of `MORE_STAGES`, made small by an overlay."""
        subcommand, file = MORE_STAGES[name]
        overlay: dict[str, Any] = SMALL | {"data": {"init_args": {"features": None}}}
        if name == "generator":
            trainer = SMALL["trainer"] | {"max_steps": 2, "limit_train_batches": 2}
            overlay = SMALL | {
                "trainer": trainer,
                "data": {"init_args": {"batch_size": 4, "use": "all", "writer": "table"}},
            }
        path = self._yaml(name, overlay)
        runs = str(self.experiment.runs)
        command = [subcommand, "--config", str(POCKET / f"{file}.yaml"), "--config", str(path)]
        command += ["--trainer.accelerator", "cpu", "--experiment", "tiny"]
        command += ["--data_root", str(self.experiment.root), "--runs", runs]
        return Writer(lambda: run(command), self.experiment.runs)

    def prepare_folder(self) -> Writer:
        """Own data: a table, pictures and clips."""
        from tests.own_table import flag_rows, write_csv, write_media

        _import_prepare()
        media = write_media(self.inputs / "media")
        table = write_csv(self.inputs / "table.csv", flag_rows())
        out = self.folder / "own"
        command = ["folder", "--table", str(table), "--media", str(media), "--out", str(out)]
        return Writer(lambda: _prepare(*command, "--workers", "1"), out)

    def prepare_pocket(self) -> Writer:
        """The pocket's data from tiny archives; its models are taken to be there."""
        from datamodules.prepare import pocket_command
        from tests.prepare_sources import write_sources

        (self.inputs / "downloads").mkdir()
        archives = write_sources(self.inputs / "downloads")
        out = self.folder / "pocket"

        def prepare() -> None:
            with (
                patch.object(pocket_command, "is_ready", lambda folder, package: True),
                patch.object(pocket_command, "fetch_all", lambda packages, folder: (archives, [])),
            ):
                _prepare("pocket", "--out", str(out))

        return Writer(prepare, out)

    def prepare_mmeb(self) -> Writer:
        """Three tasks of a benchmark."""
        from datamodules.prepare import mmeb_command
        from tests.mmeb_cases import CASES

        source, out = self.inputs / "mmeb", self.folder / "mmeb"
        source.mkdir()
        tasks = tuple(CASES[name](source).task for name in ("image_cls", "beir", "nextqa"))

        def prepare() -> None:
            with patch.object(mmeb_command, "tasks_of", lambda revision: tasks):
                _prepare("mmeb-v2", "--source", str(source), "--out", str(out), "--workers", "1")

        return Writer(prepare, out)

    def prepare_mmeb_train(self) -> Writer:
        """Two sources of the training mixture."""
        from tests import test_prepare_mmeb_train as mixture

        source, out = self.inputs / "published", self.folder / "mixture"
        mixture.write_published(source)

        def prepare() -> None:
            if status := mixture.prepare(source, out, names=("VOC2007", "hound-qa")):
                raise SystemExit(status)

        return Writer(prepare, out)

    def prepare_tiny_vlm(self) -> Writer:
        """A random vision-language model."""
        out = self.folder / "tiny_vlm"
        return Writer(lambda: _prepare("tiny-vlm", "--out", str(out / "model")), out)

    def adopt(self) -> Writer:
        """A backbone that no fit of ours has made."""
        from experiments.adopt import main

        backbone = yaml.safe_load(CLIP_TINY.read_text())["model"]["init_args"]["backbone"]
        config, out = self._yaml("adopt", {"backbone": backbone}), self.folder / "adopted"
        command = ["--config", str(config), "--out", str(out / "embedder")]

        def adopt() -> None:
            if status := main(command):
                raise SystemExit(status)

        return Writer(adopt, out)

    def report(self) -> Writer:
        """The last step of the pipeline."""
        command = [str(self.experiment.pipeline), "--", "--runs", str(self.experiment.runs)]
        return Writer(lambda: _run_pipeline(command), self.experiment.runs)

    def audit(self) -> Writer:
        """A page of every rationale."""
        from experiments.report.__main__ import main

        root = str(self.experiment.root)
        command = ["audit", str(self.experiment.folder), "--data-root", root]
        return Writer(lambda: main(command), self.experiment.runs)

    def ablations(self) -> Writer:
        """Two cells of one seed, and their table."""
        fit = merged(SMALL, merged(SMALL_FIT, {"data": {"init_args": {"features": None}}}))
        del fit["trainer"]["val_check_interval"]
        tasks = {"features": None, "tasks": ["flag-capital-t2i"]}
        predict = SMALL | {"data": {"init_args": tasks}}
        cells = {"soft": {"keep_share": 0.5}, "hard": {"keep_share": 0.5, "hard": True}}
        block = {
            "fit": str(self._ablation("embedder", fit)),
            "predict": str(self._ablation("utilities", predict)),
            "seeds": [0],
            "cells": cells,
            "comparisons": [{"left": "soft", "right": "hard", "expected": "equal"}],
        }
        pipeline = yaml.safe_load(self.experiment.pipeline.read_text())
        stages = [self.experiment.stage("selected")]
        file = self._yaml(
            "ablations", pipeline | {"stages": stages, "report": False, "ablations": block}
        )
        command = [str(file), "--", "--runs", str(self.experiment.runs)]
        return Writer(lambda: _run_pipeline(command), self.experiment.runs)

    def _ablation(self, name: str, overlay: dict[str, Any]) -> Path:
        """A file of the pocket's ablations that reads the tiny experiment, made small."""
        text = (POCKET / f"ablation/{name}.yaml").read_text().replace("/pocket/", "/tiny/")
        small = merged(overlay, {"trainer": {"accelerator": "cpu"}})
        return self._yaml(f"ablation-{name}", merged(yaml.safe_load(text), small))

    def export(self) -> Writer:
        """A tiny vision-language model for transformers."""
        from experiments.export import main
        from tests.vlm import looking

        looking("qwen3_vl").eval().save_pretrained(self.inputs / "vision")
        out = self.folder / "exported"
        command = [str(self.inputs / "vision"), "--to", "transformers", "--out", str(out / "model")]
        return Writer(lambda: main(command), out)

    def search(self) -> Writer:
        """A search whose candidates no search before has embedded."""
        from experiments.search import main

        cache = self.folder / "searched"
        command = ["--model", str(self.experiment.folder / "embedder/backbone")]
        command += ["--index", str(self.experiment.root / "candidates"), "--cache", str(cache)]
        command += ["--query", "the flag of the country of capital-03"]
        return Writer(lambda: main(command), cache)

    def score(self) -> Writer:
        """Scores of the vectors that the stage `benchmark` keeps."""
        from experiments.score import main

        out = self.folder / "scored"
        command = ["--data-root", str(self.experiment.root), "--out", str(out)]
        command += ["--embeddings", str(self.experiment.folder / "scores")]
        return Writer(lambda: main(command), out)

    def _yaml(self, name: str, data: dict[str, Any]) -> Path:
        path = self.inputs / f"{name}.yaml"
        path.write_text(yaml.safe_dump(data))
        return path


WRITERS: dict[str, Callable[[Site], Writer]] = {
    "prepare-folder": Site.prepare_folder,
    "prepare-pocket": Site.prepare_pocket,
    "prepare-mmeb": Site.prepare_mmeb,
    "prepare-mmeb-train": Site.prepare_mmeb_train,
    "prepare-tiny-vlm": Site.prepare_tiny_vlm,
    "adopt": Site.adopt,
    "export": Site.export,
    **{name: lambda site, name=name: site.stage(name) for name in STAGES},
    **{name: lambda site, name=name: site.another_stage(name) for name in MORE_STAGES},
    "ablations": Site.ablations,
    "report": Site.report,
    "audit": Site.audit,
    "search": Site.search,
    "score": Site.score,
}
"""Name -> command, in an order in which they can run."""

ALONE = ("prepare-folder", "prepare-pocket", "prepare-mmeb", "prepare-mmeb-train",
         "prepare-tiny-vlm", "adopt", "export")  # fmt: skip
"""Those that read no product of another."""


def needed_by(name: str) -> list[str]:
    """Commands that must have run, in order: stages of the pipeline, and what keeps vectors."""
    stages = list(STAGES)
    if name in ALONE:
        return []
    if name in stages:
        return stages[: stages.index(name)]
    return [*stages, *(["benchmark"] if name == "score" else [])]


def preload() -> None:
    """Imports what the commands import, so that forked processes need not."""
    _import_prepare()
    for module in (
        "datamodules.pairs",
        "experiments.cli",
        "experiments.pipeline",
        "experiments.report.__main__",
        "experiments.export",
        "experiments.search",
        "lightning_modules.contrastive_embedder",
        "lightning_modules.counterfactual_selector",
        "lightning_modules.feature_extractor",
        "lightning_modules.gating_policy",
        "lightning_modules.rationale_generator",
        "matplotlib.backends.backend_agg",
        "mmemb.backbones.mllm",
        "mmemb.backbones.open_clip",
        "open_clip",
        "pyarrow.parquet",
        "timm",
        "torch.utils.tensorboard",
        "transformers.modeling_utils",
    ):
        importlib.import_module(module)


def _import_prepare() -> None:
    from datamodules.prepare.__main__ import COMMANDS

    for module in COMMANDS.values():
        importlib.import_module(module)


def _save_every_step(overlay: Path, root: Path) -> None:
    """Four steps, each of them saved: there is something to go on from."""
    saving = {
        "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
        "init_args": {"save_last": True, "save_top_k": 0, "every_n_train_steps": 1},
    }
    recall = {"class_path": "callbacks.RecallAtK", "init_args": {"root": str(root)}}
    trainer = {"max_steps": 4, "limit_train_batches": 4, "val_check_interval": 4}
    small = {"trainer": trainer | {"callbacks": [recall, saving]}}
    overlay.write_text(yaml.safe_dump(merged(yaml.safe_load(overlay.read_text()), small)))


def _prepare(*arguments: str) -> None:
    from datamodules.prepare.__main__ import main

    if status := main(arguments):
        raise SystemExit(status)


def _run_pipeline(command: list[str]) -> None:
    """`python -m experiments.pipeline COMMAND`: stages in this process, small studies."""
    from experiments import pipeline

    with (
        patch("experiments.report.gate_study.SEEDS", (0, 1)),
        patch("experiments.report.gates.NUM_STEPS", 20),
        in_process([]),
        settings_kept(),
    ):
        pipeline.main(command)
