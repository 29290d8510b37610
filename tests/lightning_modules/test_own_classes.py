"""A backbone of another package must be allowed before the first step of its fit."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lightning_modules import ContrastiveEmbedder
from mmemb.backbones import Backbone, load_backbone
from mmemb.distributed import check_on_first_rank
from mmemb.records.batches import PairBatch
from mmemb.records.inputs import Side
from mmemb.storage.allowed_classes import allowing_classes
from mmemb.training.path_losses import PathLosses
from tests.fixtures.own_package import modules
from tests.fixtures.ranks import run_ranks
from tests.fixtures.tiny_trainer import Stub, trainer_of

WORDS = "hashed_words.HashedWords"


@pytest.fixture
def backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backbone]:
    (tmp_path / "hashed_words.py").write_text(modules()["hashed_words"], encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    torch.manual_seed(0)
    yield importlib.import_module("hashed_words").HashedWords(64, 8)
    sys.modules.pop("hashed_words", None)


def batch() -> PairBatch:
    ids_B = torch.arange(4)
    return PairBatch(
        keys=tuple("abcd"),
        queries=tuple(Side(f"what is number {n}") for n in range(4)),
        targets=tuple(Side(f"answer {n}") for n in range(4)),
        rationales=(None,) * 4,
        query_ids_B=ids_B,
        target_ids_B=ids_B,
        positive_ids_BP=ids_B[:, None],
    )


def fit(folder: Path, backbone: Backbone) -> tuple[int, float]:
    """Two steps; returns their number and a random number that is drawn behind them."""
    torch.manual_seed(1)
    trainer = trainer_of(folder, max_steps=2)
    module = ContrastiveEmbedder(backbone, losses=PathLosses(reasoned=0.0))
    trainer.fit(module, datamodule=Stub(train=lambda rank, world: [batch()] * 2))
    return trainer.global_step, float(torch.rand(()))


def test_a_fit_is_refused_before_its_first_step(backbone: Backbone, tmp_path: Path) -> None:
    before = backbone.state_dict()["words.weight"].clone()
    with pytest.raises(ValueError, match=rf"would name '{WORDS}'.*--allow-class {WORDS}"):
        fit(tmp_path, backbone)
    assert torch.equal(backbone.state_dict()["words.weight"], before)
    assert not (tmp_path / "backbone").exists()


def test_an_allowed_class_trains_and_its_folder_loads_again(
    backbone: Backbone, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    expected = float(torch.rand(()))
    with allowing_classes([WORDS]):
        assert fit(tmp_path, backbone) == (2, expected), "the rehearsal draws no random number"
    again = load_backbone(str(tmp_path / "backbone"), allow_classes=[WORDS])
    assert torch.equal(again.words.weight, backbone.words.weight)


def test_every_rank_ends_with_what_the_first_one_finds() -> None:
    def check(rank: int) -> str:
        def refuse() -> None:
            raise ValueError(f"rank {rank} says no")

        try:
            check_on_first_rank(refuse)
        except ValueError as error:
            return str(error)
        return "passed"

    assert run_ranks(check) == ["rank 0 says no"] * 2
