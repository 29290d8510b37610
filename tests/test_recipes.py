"""Every recipe for vision-language models runs two steps on the processor, stage after stage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from datamodules.prepare.tiny_vlm import write_tiny_vlm
from mmemb.adaptive import AdaptiveEmbedder
from mmemb.records import Side
from mmemb.shards import ShardIndex
from tests.tiny import write_tiny
from tests.tiny_experiment import CONFIGS, run
from tests.vlm import babbling

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
SMALL = (*PAIRS, "--data.group_size", "4")
SHORT = ("--model.workers.self.init_args.max_new_tokens", "12",
         "--model.workers.self.init_args.top_k", "3")  # fmt: skip


def test_the_direct_baseline_trains(given: tuple[Path, Path, Path]) -> None:
    folder = stage(given, "fit", "direct", *SMALL)
    assert (folder / "direct/backbone/model/config.json").is_file()


def test_all_stages_hand_on_to_each_other(given: tuple[Path, Path, Path]) -> None:
    folders = ("--data.folders", "[pairs/questions, queries]")
    folder = stage(given, "predict", "rationales", *folders, *SHORT)
    assert ShardIndex.open(folder / "rationales").entries
    judged = (*PAIRS, "--data.num_negatives", "2", "--trainer.max_steps", "-1")
    stage(given, "fit", "selection", *judged, "--trainer.limit_train_batches", "1.0")
    stage(given, "predict", "selection", *judged)
    assert ShardIndex.open(folder / "selected").entries
    stage(given, "fit", "embedder", *SMALL, "--model.cross_weight", "0.5")
    stage(given, "predict", "drafts", *SHORT)
    stage(given, "predict", "utilities", "--model.allow_fitted", "true")
    stage(given, "fit", "gate")
    first = ("--config", str(RECIPES / "first_token.yaml"), "--name", "first")
    stage(given, "fit", "gate", *first)
    for name in ("gate", "first"):
        adaptive = AdaptiveEmbedder.from_pretrained(folder / name / "adaptive")
        sides = [Side(f"the flag of {n}") for n in range(4)]
        found = adaptive.encode(sides, depth=1)
        assert (found.tokens_B > 0).all()
        nobody = adaptive.encode(sides, budget=0.0)
        assert torch.equal(nobody.vectors_BD, adaptive.encode(sides, depth=0).vectors_BD)


def test_tiny_models_are_written_by_a_command(tmp_path: Path) -> None:
    from datamodules.prepare.__main__ import main

    command = ["tiny-vlm", "--architecture", "qwen2_vl", "--out", str(tmp_path / "vlm")]
    assert main(command) == 0
    assert json.loads((tmp_path / "vlm/config.json").read_text())["model_type"] == "qwen2_vl"
    assert main(command) == 0
    with pytest.raises(ValueError, match="expected one of"):
        write_tiny_vlm(tmp_path / "other", "gpt")
