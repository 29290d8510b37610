"""Every YAML file parses, every stage runs on both tiny backbones, and the house rules hold."""

from __future__ import annotations

import inspect
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.cli.config_check import _load
from mmemb.storage.shard_index import ShardIndex
from mmemb.storage.trained_facts import TrainedFacts, read_fitted
from tests.fixtures.tiny_experiment import (
    CONFIGS,
    POCKET,
    REPO,
    STAGES,
    Experiment,
    run,
    settings_kept,
)

FILES = sorted(path for path in CONFIGS.rglob("*.yaml") if path.name != "base.yaml")
PIPELINES = [
    path for path in FILES if re.search(r"^(stages|base):", path.read_text(encoding="utf-8"), re.M)
]
ADOPTED = [path for path in FILES if "\nbackbone:" in path.read_text(encoding="utf-8")]
RUNNABLE = [path for path in FILES if path not in PIPELINES + ADOPTED]


def commands(path: Path) -> list[list[str]]:
    """The command lines that a file opens with, without what is optional or explained."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if match := re.match(r"# python -m experiments\.(run|pipeline|adopt) (.*)", line):
            text = re.split(r"\s{2,}|\s[\[(]", match[2])[0]
            found.append(shlex.split(text))
    return found


def parse(arguments: list[str]) -> Any:
    from experiments.cli.experiment_cli import parse
    from experiments.cli.messages import quieten

    quieten()
    with settings_kept():
        return parse(arguments)


def name_of(path: Path) -> str:
    return str(path.relative_to(CONFIGS))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_file_opens_with_its_command(path: Path) -> None:
    found = commands(path)
    assert found
    assert all(any(str(path.relative_to(REPO)) in argument for argument in c) for c in found)
    lines = path.read_text(encoding="utf-8").splitlines()
    header = " ".join(line for line in lines if line.startswith("#"))
    said = re.search(r"minute|second|two steps|\bs a step", header, re.IGNORECASE)
    assert said, "how long it takes"


def quick_or_slow(path: Path) -> Any:
    """A quarter of a second each: the default suite parses those of the pocket's own stages."""
    marks = () if path.parent == POCKET else pytest.mark.slow
    return pytest.param(path, marks=marks, id=name_of(path))


@pytest.mark.parametrize("path", [quick_or_slow(path) for path in RUNNABLE])
def test_every_command_of_a_file_parses(path: Path) -> None:
    for arguments in commands(path):
        config = parse(arguments)
        assert config.model.class_path.startswith("lightning_modules.")
        assert config.data.class_path.startswith("datamodules.")
        assert "${" not in str(config.as_dict()), "interpolation is resolved"
        assert config.name
        assert config.experiment.startswith(("pocket", "mmeb_v2", "own"))


@pytest.mark.slow
def test_every_stage_of_every_pipeline_parses() -> None:
    from experiments.pipeline import per_seed, read_pipeline

    found = set()
    for path in PIPELINES:
        stages = per_seed(read_pipeline(path), 1)[0].stages
        assert len({s.name for s in stages}) == len(stages), path.name
        found |= {tuple(stage.command_line(["--experiment", "other"])) for stage in stages}
    for command in sorted(found):
        made = {n for n, word in enumerate(command) if word.startswith("data/mmeb_train/")}
        rest = [word for n, word in enumerate(command) if not {n, n + 1} & made]  # by `prepare`
        assert parse(rest).experiment == "other"


def test_the_pipeline_names_every_stage_once_and_in_order() -> None:
    from experiments.pipeline import read_pipeline

    pipeline = read_pipeline(POCKET / "pipeline.yaml")
    found = {s.name: (s.subcommand, Path(s.config).stem) for s in pipeline.stages}
    assert (found, list(found)) == (STAGES, list(STAGES))


def test_a_shared_key_reaches_everything_that_it_feeds() -> None:
    path = str(POCKET / "trunk.yaml")
    config = parse(["fit", "--config", path, "--data_root", "elsewhere", "--runs", "out"])
    backbone = config.model.init_args.backbone.init_args
    assert backbone.text_model == "elsewhere/models/minilm"
    assert backbone.tower.init_args.weights == "elsewhere/models/lite0"
    assert config.data.init_args.root == "elsewhere"
    assert config.data.init_args.features == "out/pocket/features"


def test_a_backbone_overlay_swaps_the_whole_block() -> None:
    overlay = str(CONFIGS / "backbone/clip_tiny.yaml")
    config = parse(["fit", "--config", str(POCKET / "trunk.yaml"), "--config", overlay])
    assert config.model.init_args.backbone.class_path.endswith("OpenClipBackbone")
    assert "text_model" not in config.model.init_args.backbone.init_args
    assert config.data.init_args.features is None, "its towers read pixels"
    assert config.data.init_args.pairs == ["pairs/plain"]


def test_a_literal_is_overridden_on_the_command_line() -> None:
    path = str(POCKET / "judge.yaml")
    config = parse(["fit", "--config", path, "--data.fold", "b", "--trainer.max_steps", "7"])
    assert config.name == "judge-b"
    assert config.data.init_args.fold == "b"
    assert config.trainer.max_steps == 7


def test_own_data_are_trained_alike_on_a_gpu() -> None:
    """One file for each, since a user shall name one; they differ in what the machine needs."""
    train, gpu = (
        yaml.safe_load((CONFIGS / f"own/{name}.yaml").read_text()) for name in ("train", "gpu")
    )
    assert gpu["model"]["init_args"].pop("gradient_cache")
    for key in ("batch_size", "group_size", "num_workers"):
        for part in (train, gpu):
            part["data"]["init_args"].pop(key, None)
    for key in (
        "accelerator", "devices", "precision",
        "max_steps", "limit_train_batches", "val_check_interval",
    ):  # fmt: skip
        for part in (train, gpu):
            part["trainer"].pop(key, None)
    assert gpu == train


def test_the_base_file_is_read_first(tmp_path: Path) -> None:
    overlay = tmp_path / "own.yaml"
    overlay.write_text("trainer: {log_every_n_steps: 77}\n")
    config = parse(["fit", "--config", str(POCKET / "trunk.yaml"), "--config", str(overlay)])
    assert config.trainer.log_every_n_steps == 77
    assert config.trainer.use_distributed_sampler is False


def classes(node: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(node, Mapping):
        if "class_path" in node:
            yield node
        for value in node.values():
            yield from classes(value)
    elif isinstance(node, list):
        for value in node:
            yield from classes(value)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_what_interpolation_feeds_has_no_value_of_its_own(path: Path) -> None:
    """An overlay that swaps a class drops `${...}` without a word: then a default
    would be silently wrong, where a missing argument is an error. `None` = off is allowed, and so
    are Lightning's own classes, which nobody swaps."""
    wrong = []
    for node in classes(yaml.safe_load(path.read_text(encoding="utf-8"))):
        if node["class_path"].startswith("lightning."):
            continue
        parameters = inspect.signature(_load(node["class_path"], path, "")).parameters
        for key, value in (node.get("init_args") or {}).items():
            if isinstance(value, str) and "${" in value:
                default = parameters[key].default
                if default is not inspect.Parameter.empty and default is not None:
                    wrong.append(f"{node['class_path']}({key}={default!r})")
    assert not wrong, wrong


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_the_last_checkpoint_is_the_last_step(path: Path) -> None:
    """With a monitor it would be the last one *chosen*; a run would go on from far behind."""
    trainer = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("trainer") or {}
    saving = [
        callback.get("init_args") or {}
        for callback in trainer.get("callbacks") or []
        if callback["class_path"].endswith("ModelCheckpoint")
    ]
    last = [given for given in saving if given.get("save_last")]
    assert len(last) == bool(saving), "whoever keeps the best keeps the last, once"
    for given in last:
        assert set(given) == {"save_last", "save_top_k", "every_n_train_steps"}
        assert given["save_top_k"] == 0
        assert trainer["max_steps"] % given["every_n_train_steps"] == 0, "the very last one, too"
    for given in [given for given in saving if given not in last]:
        assert given["monitor"].startswith("val/")
        assert given["filename"] != "last"


# ---- every stage on both backbones


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("clip", marks=pytest.mark.xdist_group("clip_experiment")),
        # As slow as all stages once more; its own paths are tested by what they compute.
        pytest.param(
            "joint", marks=[pytest.mark.xdist_group("joint_experiment"), pytest.mark.slow]
        ),
    ],
)
def experiment(request: pytest.FixtureRequest) -> Experiment:
    return request.getfixturevalue(f"{request.param}_experiment")


LINKS = {
    "features": "features-predict", "rationales": "rationales-predict", "trunk": "trunk",
    "judge-a": "judge-a", "judge-b": "judge-b", "selection": "selection",
    "selected": "selection-predict", "selection-test": "selection-test", "embedder": "embedder",
    "depth_values": "depth_values-predict", "gate": "gate", "decisions": "gate-predict",
    "gate-test": "gate-test",
}  # fmt: skip


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_ran_and_left_its_record(experiment: Experiment, stage: str) -> None:
    run = experiment.folder / LINKS[stage]
    assert run.is_symlink()
    assert json.loads((run / "fingerprint.json").read_text())["finished"] is True
    assert yaml.safe_load((run / "config.yaml").read_text())["experiment"] == "tiny"
    assert list(run.glob("events.out.tfevents.*")), "TensorBoard"
    if STAGES[stage][0] == "fit":
        assert read_fitted(run / "fitted.json") != TrainedFacts()


@pytest.mark.parametrize(
    "folder", ["features", "rationales", "selected", "depth_values", "decisions"]
)
def test_every_sidecar_is_whole(experiment: Experiment, folder: str) -> None:
    assert ShardIndex.open(experiment.folder / folder).entries


@pytest.mark.parametrize("stage", ["trunk", "judge-a", "judge-b", "embedder"])
def test_every_embedder_can_be_loaded(experiment: Experiment, stage: str) -> None:
    from mmemb.backbones.base import load_backbone

    backbone = load_backbone(str(experiment.folder / stage / "backbone"))
    name = type(backbone).__name__
    assert name == ("JointEncoder" if "joint" in str(experiment.runs) else "OpenClipBackbone")


def test_facts_are_handed_down_from_stage_to_stage(experiment: Experiment) -> None:
    def facts(stage: str) -> frozenset[str]:
        return read_fitted(experiment.folder / stage / "fitted.json").trained

    def calibrated(stage: str) -> frozenset[str]:
        return read_fitted(experiment.folder / stage / "fitted.json").calibrated

    assert facts("trunk") < facts("judge-a")
    assert facts("trunk") < facts("judge-b")
    capital = {"/capital"}
    a, b = (
        {f for f in facts(f"judge-{half}") if f.endswith(tuple(capital))} for half in ("a", "b")
    )
    assert a
    assert b
    assert not a & b, "no judge saw what it judges"
    assert facts("trunk") <= facts("embedder")
    assert facts("embedder") < facts("gate")

    assert not facts("rationales"), "the writer was not tuned"
    assert not facts("selection"), "tau and eta are no weights"
    assert not facts("selected"), "judges choose texts, and write none"
    assert facts("judge-a") | facts("judge-b") <= calibrated("selection")
    assert calibrated("selection") <= calibrated("selected") <= calibrated("embedder")
    assert facts("depth_values") == facts("embedder")
    assert facts("embedder/backbone") == facts("embedder")
    assert facts("gate/adaptive/backbone") == facts("gate")

    held_out = {f"country:{n:02d}/capital" for n in range(18, 24)}
    assert not held_out & facts("gate"), "no fact of split test was ever fitted"


@pytest.mark.xdist_group("clip_experiment")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "folder"), [("mine_negatives", "negatives"), ("teacher", "teacher")]
)
def test_sidecars_of_pairs_are_made_and_trained_on(
    clip_experiment: Experiment, tmp_path: Path, name: str, folder: str
) -> None:
    shared = ["--experiment", "tiny", "--data_root", str(clip_experiment.root)]
    shared += ["--runs", str(clip_experiment.runs), "--trainer.accelerator", "cpu"]
    shared += ["--needs.memory_gib", "0.1", "--data.features", "null"]
    run(["predict", "--config", str(POCKET / f"{name}.yaml"), *shared])
    sidecar = clip_experiment.folder / folder
    assert ShardIndex.open(sidecar).entries
    more = ["--runs", str(tmp_path), f"--data.{folder}", str(sidecar)]
    more += ["--model.backbone.folder", str(clip_experiment.folder / "trunk/backbone")]
    more += [
        "--data.sidecar",
        str(clip_experiment.folder / "selected"),
        "--data.val_rationales",
        "null",
    ]
    more += (
        ["--model.distillation_weight", "1"] if name == "teacher" else ["--data.num_negatives", "2"]
    )
    more += ["--model.gradient_cache", "{micro_batch_size: 3}", "--model.losses.dims", "[16]"]
    run(clip_experiment.command("embedder", *more))
    assert (tmp_path / "tiny/embedder/backbone/weights.pt").is_file()


@pytest.mark.xdist_group("clip_experiment")
def test_a_gated_model_is_scored_like_any_other(
    clip_experiment: Experiment, tmp_path: Path
) -> None:
    from mmemb.benchmarks.score_files import read_scores

    data = {
        "class_path": "datamodules.BenchmarkDataModule",
        "init_args": {
            "root": str(clip_experiment.root), "batch_size": 8, "whole_galleries": True,
            "rationales": str(clip_experiment.folder / "rationales"),
        },
    }  # fmt: skip
    scores = {"class_path": "callbacks.BenchmarkScores", "init_args": {"folder": str(tmp_path)}}
    overlay = tmp_path / "benchmark.yaml"
    model = {"init_args": {"measure_latency": False}}
    overlay.write_text(
        yaml.safe_dump({"data": data, "model": model, "trainer": {"callbacks": [scores]}})
    )
    more = ["--config", str(overlay), "--runs", str(clip_experiment.runs), "--name", "scored"]
    run(clip_experiment.command("gate-test", *more))
    found = read_scores(tmp_path)
    before = clip_experiment.folder / "gate-test/summary.json"
    expected = json.loads(before.read_text())["metrics"]["test/recall@1"]
    mean = sum(file.scores["recall@1"] for file in found.values()) / len(found)
    assert mean == pytest.approx(expected)
