"""Runs open again: the module of a run from its own records, the inference path of a gate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from experiments.load import load_adaptive, load_run
from lightning_modules import ContrastiveEmbedder
from mmemb.adaptive import AdaptiveEmbedder
from mmemb.backbones import OpenClipBackbone
from mmemb.budget import Thresholds
from mmemb.gating import MlpDepthHead
from mmemb.rationales import TableWorker
from mmemb.records import Side

TINY = Path(__file__).parents[1] / "experiments/configs/backbone/clip_tiny.json"
SIDES = [Side("the flag of Peru"), Side("a cat")]


@pytest.fixture(scope="module")
def backbone() -> OpenClipBackbone:
    torch.manual_seed(1)
    return OpenClipBackbone(str(TINY), tokenizer="bytes").eval()


@pytest.fixture
def run(tmp_path: Path, backbone: OpenClipBackbone) -> Path:
    """What `experiments.run fit` leaves of a ContrastiveEmbedder."""
    settings = {
        "class_path": "lightning_modules.ContrastiveEmbedder",
        "init_args": {
            "backbone": {
                "class_path": "mmemb.backbones.OpenClipBackbone",
                "init_args": {"model": str(TINY), "tokenizer": "bytes"},
            },
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.1}},
            "num_warmup": 3,
        },
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": settings, "name": "trunk"}))
    (tmp_path / "checkpoints").mkdir()
    state = {"state_dict": ContrastiveEmbedder(backbone).state_dict()}
    torch.save(state, tmp_path / "checkpoints/last.ckpt")
    return tmp_path


def test_a_run_opens_with_its_settings_and_weights(run: Path, backbone: OpenClipBackbone) -> None:
    module = load_run(run)
    assert isinstance(module, ContrastiveEmbedder)
    assert module.num_warmup == 3
    assert not module.training
    with torch.no_grad():
        torch.testing.assert_close(module.backbone.encode(SIDES), backbone.encode(SIDES))


def test_a_checkpoint_of_another_module_is_one_clear_error(run: Path) -> None:
    torch.save({"state_dict": {"head.weight": torch.zeros(1)}}, run / "other.ckpt")
    with pytest.raises(ValueError, match=r"other\.ckpt does not fit the ContrastiveEmbedder"):
        load_run(run, run / "other.ckpt")


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.yaml is missing"):
        load_run(tmp_path)
    with pytest.raises(FileNotFoundError, match="not a saved AdaptiveEmbedder"):
        load_adaptive(tmp_path)


def test_the_inference_path_opens_from_the_run_or_its_folder(
    tmp_path: Path, backbone: OpenClipBackbone
) -> None:
    facts = {"questions": {SIDES[0].text: "pe"}, "countries": {"pe": {"name": "Peru"}}}
    (tmp_path / "facts.json").write_text(json.dumps(facts))
    saved = AdaptiveEmbedder(
        backbone,
        MlpDepthHead(backbone.embedding_dim),
        Thresholds(),
        {"full": TableWorker(str(tmp_path / "facts.json"))},
    )
    saved.save_pretrained(tmp_path / "gate/adaptive")
    for folder in (tmp_path / "gate", tmp_path / "gate/adaptive"):
        encoded = load_adaptive(folder).encode(SIDES, depth=1)
        torch.testing.assert_close(encoded.vectors_BD, saved.encode(SIDES, depth=1).vectors_BD)
        assert encoded.depths_B[0] == 1
