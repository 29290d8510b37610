"""Every recipe for vision-language models runs two steps on the processor, stage after stage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from datamodules.prepare.tiny_vlm.build import write_tiny_vlm
from experiments.export.import_embedder import main as adopt
from mmemb.backbones import VisionLanguageBackbone, load_backbone
from mmemb.gate.adaptive_embedder import AdaptiveEmbedder
from mmemb.records.inputs import Side
from mmemb.storage.shard_index import ShardIndex
from tests.fixtures.tiny_data import write_tiny
from tests.fixtures.tiny_experiment import CONFIGS, run
from tests.fixtures.tiny_vlm import babbling

RECIPES = CONFIGS / "mmeb_v2"
CPU = ["--config", str(RECIPES / "cpu.yaml")]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:Found .* eval mode"),
]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Data, runs, and a model that writes whole rationales now and then."""
    folder = tmp_path_factory.mktemp("recipes")
    babbling("qwen3_vl").save_pretrained(folder / "babbling")
    return write_tiny(folder / "data"), folder / "runs", folder / "babbling/model"


def stage(given: tuple[Path, Path, Path], subcommand: str, name: str, *more: str) -> Path:
    """Runs a recipe as its header says, on tiny data."""
    root, runs, model = given
    command = [subcommand, "--config", str(RECIPES / f"{name}.yaml"), *CPU]
    command += ["--data_root", str(root), "--runs", str(runs)]
    if subcommand == "fit" or name in ("rationales", "selection"):
        command += ["--vlm", str(model)]
    run([*command, *more])
    return runs / "mmeb_v2"


PAIRS = ("--data.pairs", "[pairs/questions]")
# A model that babbles needs some length and variety to write a whole rationale now and then.
SHORT = ("--model.writers.self.init_args.max_new_tokens", "24",
         "--model.writers.self.init_args.top_k", "8")  # fmt: skip


def test_the_direct_baseline_trains(given: tuple[Path, Path, Path]) -> None:
    folder = stage(given, "fit", "direct", *PAIRS)
    assert (folder / "direct/backbone/model/config.json").is_file()


def test_all_stages_hand_on_to_each_other(given: tuple[Path, Path, Path], tmp_path: Path) -> None:
    folders = ("--data.folders", "[pairs/questions, queries]")
    folder = stage(given, "predict", "rationales", *folders, *SHORT)
    assert ShardIndex.open(folder / "rationales").entries
    judged = (*PAIRS, "--data.num_negatives", "2", "--trainer.max_steps", "-1")
    stage(given, "fit", "selection", *judged, "--trainer.limit_train_batches", "1.0",
          "--trainer.val_check_interval", "1")  # fmt: skip
    stage(given, "predict", "selection", *judged)
    assert ShardIndex.open(folder / "selected").entries
    stage(given, "fit", "embedder", *PAIRS, "--model.losses.cross", "0.5")
    stage(given, "predict", "drafts", *SHORT)
    stage(given, "predict", "depth_values", "--model.allow_trained_facts", "true")
    stage(given, "fit", "gate")
    first = ("--config", str(RECIPES / "first_token.yaml"), "--name", "first")
    stage(given, "fit", "gate", *first)
    shutil.copytree(given[0], tmp_path / "benchmark/tiny")
    scored = ("--data_root", str(tmp_path / "benchmark"), "--data.num_workers", "0")
    for budget in ("0", "1"):
        out = ("--trainer.callbacks.init_args.folder", str(tmp_path / budget))
        stage(given, "test", "evaluate_gated", *scored, *out, "--model.budget", budget)
    never, always = (embeddings(tmp_path / budget) for budget in ("0", "1"))
    assert never.keys() == always.keys()
    assert any(not np.array_equal(never[name], always[name]) for name in never), "none has reasoned"
    for name in ("gate", "first"):
        adaptive = AdaptiveEmbedder.from_pretrained(folder / name / "adaptive")
        sides = [Side(f"the flag of {n}") for n in range(4)]
        found = adaptive.encode(sides, depth="full")
        assert (found.tokens_B > 0).all()
        nobody = adaptive.encode(sides, budget=0.0)
        assert torch.equal(nobody.vectors_BD, adaptive.encode(sides, depth="direct").vectors_BD)


def embeddings(scores: Path) -> dict[str, np.ndarray]:
    """Vectors of the queries, by task."""
    return {path.name: np.load(path) for path in scores.rglob("*_qry.npy")}


def test_a_gate_is_bolted_on_to_a_frozen_embedder(
    given: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At budget 0 every vector is bit by bit the one of the embedder as it was adopted."""
    root, runs, model = given
    folder = runs / "mmeb_v2_bolt_on"
    adopted = ["--config", str(RECIPES / "qwen3_vl_embedding.yaml"), "--model", str(model)]
    assert adopt([*adopted, "--out", str(folder / "embedder")]) == 0
    before = load_backbone(str(folder / "embedder/backbone")).state_dict()
    shared = ("--experiment", "mmeb_v2_bolt_on")
    drafts = str(folder / "drafts")
    stage(given, "predict", "rationales", *shared, "--data.folders", "[queries]", *SHORT,
          "--data.rationales", drafts, "--trainer.callbacks.folder", drafts)  # fmt: skip
    stage(given, "predict", "depth_values", *shared)
    stage(given, "fit", "gate", "--config", str(RECIPES / "bolt_on_gate.yaml"), "--vlm", str(model))
    adaptive = AdaptiveEmbedder.from_pretrained(folder / "gate/adaptive", models=[str(model)])
    after = adaptive.backbone.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    sides = [Side(f"the flag of {n}", "Find it.") for n in range(4)]
    base = load_backbone(str(folder / "embedder/backbone")).encode(sides)
    assert torch.equal(adaptive.encode(sides, budget=0.0).vectors_BD, base)
    assert adopt([*adopted, "--out", str(folder / "embedder")]) == 0
    assert "everything is there" in capsys.readouterr().out
    other = write_tiny_vlm(tmp_path / "other", "qwen3_vl", seed=5)
    shutil.copytree(other, tmp_path / "model")
    there = ("--model", str(tmp_path / "model"), "--out", str(tmp_path / "adopted"))
    assert adopt([*adopted[:2], *there]) == 0
    shutil.copyfile(model / "model.safetensors", tmp_path / "model/model.safetensors")
    assert adopt([*adopted[:2], *there]) == 0
    assert "everything is there" not in capsys.readouterr().out, "its weights are others"


def test_presets_embed_and_are_scored(given: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """VLM2Vec's prompts on a tiny Qwen2-VL, through the evaluator's command."""
    root, runs, _ = given
    model = write_tiny_vlm(tmp_path / "qwen2", "qwen2_vl")
    out = runs / "mmeb_v2_vlm2vec_v2/embedder"
    config = ["--config", str(RECIPES / "vlm2vec_v2.yaml"), "--model", str(model)]
    assert adopt([*config, "--out", str(out)]) == 0
    shutil.copytree(root, tmp_path / "benchmark/tiny")
    command = ["test", "--config", str(RECIPES / "evaluate_published.yaml"), *CPU]
    command += ["--data_root", str(tmp_path / "benchmark"), "--runs", str(runs)]
    command += ["--experiment", "mmeb_v2_vlm2vec_v2"]
    run([*command, "--data.num_workers", "0"])
    assert list((runs / "mmeb_v2_vlm2vec_v2/scores").rglob("*.json"))


def test_the_published_recipe_trains(given: tuple[Path, Path, Path], tmp_path: Path) -> None:
    model = write_tiny_vlm(tmp_path / "qwen2", "qwen2_vl")
    root, runs, _ = given
    stage((root, runs, model), "fit", "train_vlm2vec_v2", *PAIRS)
    assert (runs / "mmeb_v2_vlm2vec_v2/train/backbone/config.json").is_file()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("model: {}", "expected a key `backbone`"),
        ("backbone: {class_path: os.system, init_args: {command: ls}}", "no backbone"),
        ("backbone: {class_path: mmemb.backbones.VisionLanguageBackbone, init_args: {colour: 1}}",
         "colour"),
    ],
)  # fmt: skip
def test_what_cannot_be_adopted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, said: str
) -> None:
    (tmp_path / "c.yaml").write_text(content)
    out = tmp_path / "run"
    assert adopt(["--config", str(tmp_path / "c.yaml"), "--out", str(out)]) == 1
    assert said in capsys.readouterr().err
    assert not out.exists()


def test_drafts_are_written_behind_the_prompt_that_is_embedded() -> None:
    """Another style would be another prompt, and nobody would say so."""
    models = {
        name: yaml.safe_load((RECIPES / f"{name}.yaml").read_text())["model"]["init_args"]
        for name in ("direct", "embedder", "drafts")
    }
    style = models["embedder"]["backbone"]["init_args"]["style"]
    assert style == models["direct"]["backbone"]["init_args"]["style"]
    assert style == models["drafts"]["writers"]["self"]["init_args"]["style"]


def test_tiny_models_are_written_by_a_command(tmp_path: Path) -> None:
    from datamodules.prepare.__main__ import main

    command = ["tiny-vlm", "--architecture", "qwen2_vl", "--out", str(tmp_path / "vlm")]
    assert main(command) == 0
    assert json.loads((tmp_path / "vlm/config.json").read_text())["model_type"] == "qwen2_vl"
    written = (tmp_path / "vlm/model.safetensors").stat().st_mtime_ns
    assert main(command) == 0
    assert (tmp_path / "vlm/model.safetensors").stat().st_mtime_ns == written
    assert main([*command, "--seed", "1"]) == 0
    assert (tmp_path / "vlm/model.safetensors").stat().st_mtime_ns > written
    mark = json.loads((tmp_path / "vlm/tiny.json").read_text())
    (tmp_path / "vlm/tiny.json").write_text(json.dumps({**mark, "done": False}))  # interrupted
    (tmp_path / "vlm/model.safetensors").write_bytes(b"fold")
    assert main(command) == 0
    assert VisionLanguageBackbone(str(tmp_path / "vlm")).embedding_dim == 32
    (tmp_path / "vlm/tiny.json").unlink()
    assert main(command) != 0, "somebody else's model"
    with pytest.raises(ValueError, match="expected one of"):
        write_tiny_vlm(tmp_path / "other", "gpt")
