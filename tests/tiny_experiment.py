"""The pocket's own YAML files, all stages, on the tiny data set with tiny models: seconds.

Stages run in this process (`in_process`), where `experiments.pipeline` would start one for each.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import yaml

REPO = Path(__file__).parents[1]
CONFIGS = REPO / "experiments/configs"
POCKET = CONFIGS / "pocket"
CLIP_TINY = CONFIGS / "backbone/clip_tiny.yaml"

FEATURES = {"model": {"init_args": {"tower": {"init_args": {"image_size": 32}}}}}
"""The tower is the real one, on small squares."""

SMALL: dict[str, Any] = {
    "needs": {"memory_gib": 0.1, "disk_gib": 0.1},
    "trainer": {"log_every_n_steps": 1},
}

SMALL_FIT = {
    "data": {"init_args": {"batch_size": 8, "group_size": 4}},
    "trainer": {
        "max_steps": 2,
        "limit_train_batches": 2,
        "val_check_interval": 2,
    },
}


@dataclass(frozen=True)
class Experiment:
    """Where a tiny experiment lies, and the pipeline file that makes it."""

    root: Path
    runs: Path
    pipeline: Path
    overlays: Path

    @property
    def folder(self) -> Path:
        return self.runs / "tiny"

    def stage(self, name: str) -> dict[str, Any]:
        stages = yaml.safe_load(self.pipeline.read_text())["stages"]
        return next(stage for stage in stages if stage["name"] == name)

    def command(self, name: str, *more: str) -> list[str]:
        """The arguments of `experiments.run` for one stage."""
        stage = self.stage(name)
        shared = ["--experiment", "tiny", "--data_root", str(self.root)]
        given = ["--config", stage["config"], *stage["arguments"]]
        return [stage["subcommand"], *given, *shared, *more]


def write_experiment(folder: Path, root: Path, backbone: str = "clip_tiny") -> Experiment:
    """Writes the overlays and the pipeline file of a tiny experiment; runs nothing."""
    overlays = folder / "overlays"
    overlays.mkdir(parents=True)
    stages = [_stage(name, backbone, overlays, root) for name in STAGES]
    pipeline = folder / "pipeline.yaml"
    data = {"experiment": "tiny", "data_root": str(root), "stages": stages}
    pipeline.write_text(yaml.safe_dump(data))
    return Experiment(root, folder / "runs", pipeline, overlays)


STAGES = {
    "features": ("predict", "features"),
    "rationales": ("predict", "rationales"),
    "trunk": ("fit", "trunk"),
    "judge-a": ("fit", "judge"),
    "judge-b": ("fit", "judge"),
    "selection": ("fit", "selection"),
    "selected": ("predict", "selection"),
    "selection-test": ("test", "selection"),
    "embedder": ("fit", "embedder"),
    "utilities": ("predict", "utilities"),
    "gate": ("fit", "gate"),
    "decisions": ("predict", "gate"),
    "gate-test": ("test", "gate"),
}
"""Stage -> subcommand and YAML file, as in `pocket/pipeline.yaml`."""


def _stage(name: str, backbone: str, overlays: Path, root: Path) -> dict[str, Any]:
    subcommand, config = STAGES[name]
    arguments = ["--trainer.accelerator", "cpu"]
    if name.startswith("judge"):
        arguments += ["--data.half", name[-1]]
    if backbone == "clip_tiny" and name == "trunk":
        arguments += ["--config", str(CLIP_TINY)]
    overlay = _overlay(name, backbone, root)
    path = overlays / f"{name}.yaml"
    path.write_text(yaml.safe_dump(overlay))
    arguments += ["--config", str(path)]
    copied = overlays / f"pocket-{config}.yaml"  # whoever edits the file disturbs no running test
    shutil.copy(POCKET / f"{config}.yaml", copied)
    return {
        "name": name,
        "subcommand": subcommand,
        "config": str(copied),
        "arguments": arguments,
    }


def _overlay(name: str, backbone: str, root: Path) -> dict[str, Any]:
    """What makes a stage small; clip's towers read pixels, so it wants no features."""
    fit = name in {"trunk", "judge-a", "judge-b", "embedder"}
    own: dict[str, Any] = {}
    if fit:
        own = SMALL_FIT
    elif name == "features":
        own = FEATURES
    elif name == "rationales":
        own = {
            "model": {
                "init_args": {"workers": _workers(root), "num_candidates": 2, "probe": "smollm2"}
            }
        }
    elif name.startswith("gate") or name == "decisions":
        own = _gate()
    overlay = merged(SMALL, own)
    if backbone == "clip_tiny" and name not in {"features", "rationales"}:
        overlay = merged(overlay, {"data": {"init_args": {"features": None}}})
    return overlay


def _workers(root: Path) -> dict[str, Any]:
    prompt = str(POCKET / "few_shot.json")
    chat = {
        "model": str(root / "models/smollm2"),
        "prompt": prompt,
        "max_new_tokens": 3,
        "probe_layer": 0,
    }
    return {
        "table": {
            "class_path": "mmemb.rationales.TableWorker",
            "init_args": {"facts": str(root / "facts.json")},
        },
        "smollm2": {"class_path": "mmemb.rationales.LanguageModelWorker", "init_args": chat},
    }


def _gate() -> dict[str, Any]:
    """Tokens are rewarded, so that the gate wants to reason, and a budget stops it half-way."""
    own = {
        "price": -1.0,
        "budget": 0.5,
        "workers": {"full": {"init_args": {"max_new_tokens": 3, "probe_layer": 0}}},
    }
    return {
        "model": {"init_args": own},
        "data": {"init_args": {"batch_size": 16}},
        "trainer": {"max_steps": 4, "limit_train_batches": 4, "val_check_interval": 4},
    }


def merged(left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
    """Nested settings, those of `right` over those of `left`."""
    return left | {
        key: merged(left[key], value) if isinstance(left.get(key), dict) else value
        for key, value in right.items()
    }


def trained_weights(folder: Path) -> dict[str, Any]:
    """Those of the trunk in an experiment's folder."""
    return torch.load(folder / "trunk/backbone/weights.pt", weights_only=True)


def run(arguments: Sequence[str]) -> None:
    """`python -m experiments.run ARGUMENTS`, in this process."""
    from experiments.run import main

    with settings_kept():
        main(list(arguments))


@contextmanager
def settings_kept() -> Iterator[None]:
    """A run leaves its folder's name in the environment, and precision and threads in torch."""
    precision, cwd = torch.get_float32_matmul_precision(), os.getcwd()
    with patch.dict(os.environ):
        os.environ.pop("MMEMB_RUN_FOLDER", None)
        os.chdir(REPO)
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(precision)
            os.chdir(cwd)


@contextmanager
def in_process(ran: list[str]) -> Iterator[None]:
    """Makes `experiments.pipeline` run its stages here; notes the names of those that ran."""
    from experiments import pipeline

    def run_stage(stage: pipeline.Stage, shared: Sequence[str]) -> None:
        ran.append(stage.name)
        run(stage.command_line(shared))

    with patch.object(pipeline, "run_stage", run_stage):
        yield


def run_pipeline(experiment: Experiment, *arguments: str) -> list[str]:
    """`python -m experiments.pipeline FILE ARGUMENTS`; returns the stages that ran."""
    from experiments.pipeline import main

    ran: list[str] = []
    with (
        patch("experiments.report.gate_study.SEEDS", (0, 1)),  # small studies of small data
        patch("experiments.report.gates.NUM_STEPS", 20),
        in_process(ran),
        settings_kept(),
        patch.dict(os.environ, MMEMB_RUNS=str(experiment.runs)),
    ):
        main([str(experiment.pipeline), *arguments])
    return ran
