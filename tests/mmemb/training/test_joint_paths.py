"""Joint training of the paths: direct, reasoning, across them, and writing, on one sequence."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_modules import ContrastiveEmbedder
from mmemb.backbones import VisionLanguageBackbone, load_backbone
from mmemb.llm.lora import LoraSettings
from mmemb.losses.ids import PairIds
from mmemb.losses.infonce import contrastive_loss
from mmemb.losses.terms import combine
from mmemb.records.batches import PairBatch
from mmemb.training.gradient_cache import GradientCache
from mmemb.training.pair_vectors import PairVectors, pair_vectors
from mmemb.training.path_losses import PathLosses
from tests.fixtures.ranks import run_ranks
from tests.fixtures.tiny_embedder import joint
from tests.fixtures.tiny_trainer import trainer_of
from tests.fixtures.tiny_vlm import folder as vlm_folder
from tests.fixtures.tiny_vlm import note
from tests.lightning_modules.test_contrastive_embedder import ROWS, joined, rows
from tests.lightning_modules.test_scale import rank_trainer, twice, weights

pytestmark = pytest.mark.filterwarnings("ignore:Found .* eval mode")

ALL = PathLosses(reasoned=1.0, cross=0.5, next_token=0.3)
TAU = torch.tensor(0.2)
CACHES = (None, GradientCache(micro_batch_size=3))
CELLS = list(itertools.product(("ddp", "fsdp2"), CACHES, (False, True), (False, True)))
"""Strategy, cache, checkpointing, LoRA."""


def thoughtful(first: int, valid: int, step: int = 2) -> PairBatch:
    """Rows of one rank; some targets have a rationale, too."""
    batch = rows(first, valid)
    notes = tuple(
        note(f"<answer>land {n}</answer>") if n % step == 0 else None for n in range(ROWS)
    )
    return replace(batch, target_rationales=notes)


SPLITS = [thoughtful(0, 5), thoughtful(ROWS, 0, step=3)]  # the second rank's queries do not reason


def vlm(name: str = "qwen3_vl") -> VisionLanguageBackbone:
    return VisionLanguageBackbone(str(vlm_folder(name)))


def gradients(backbone: VisionLanguageBackbone, loss: Tensor) -> dict[str, Tensor]:
    backbone.zero_grad(set_to_none=True)
    loss.backward()
    return {n: p.grad.clone() for n, p in backbone.named_parameters() if p.grad is not None}


def total(vectors: PairVectors, batch: PairBatch, **weights: float) -> Tensor:
    losses = PathLosses(
        **{"direct": 1.0, "reasoned": 1.0, "cross": 0.5, "next_token": 0.3} | weights
    )
    return sum(losses.compute(vectors, batch, TAU).values(), torch.zeros(()))


@pytest.mark.parametrize("name", ["qwen3_vl", pytest.param("qwen3_5", marks=pytest.mark.slow)])
def test_micro_batches_have_the_gradients_of_the_whole(name: str) -> None:
    backbone, batch = vlm(name), joined(SPLITS)
    whole = gradients(backbone, total(pair_vectors(backbone, batch), batch))
    cache = GradientCache(micro_batch_size=5)
    parts = gradients(backbone, total(pair_vectors(backbone, batch, cache=cache), batch))
    assert set(whole) == set(parts)
    assert {n for n, _ in backbone.named_parameters() if "visual" not in n} == set(whole)
    for key, value in whole.items():
        assert (parts[key] - value).abs().max() < 1e-4 * value.abs().max() + 1e-6, key


def test_the_losses_are_those_of_the_method() -> None:
    backbone, batch = vlm(), thoughtful(0, 5)
    vectors = pair_vectors(backbone, batch)
    with torch.no_grad():
        thought = backbone.encode(batch.targets, batch.target_rationales)
        assert (vectors.reasoned_target_BD - thought).abs().max() < 1e-5
        assert (vectors.target_BD - backbone.encode(batch.targets)).abs().max() < 1e-5
    found = PathLosses(direct=2.0, reasoned=3.0, cross=5.0, next_token=7.0).compute(
        vectors, batch, TAU
    )

    def term(query_BD: Tensor, target_BD: Tensor, valid: list[bool]) -> float:
        ids = PairIds(batch.query_ids_B, batch.target_ids_B, batch.positive_ids_BP)
        valid_B = torch.tensor(valid)
        loss = contrastive_loss(query_BD, target_BD, ids, temperature=TAU, valid_B=valid_B)
        return float(combine(loss).detach())

    asked = [r is not None for r in batch.rationales]
    thought_of = [r is not None for r in batch.target_rationales]
    both = [a and b for a, b in zip(asked, thought_of, strict=True)]
    direct, target = vectors.query_BD, vectors.target_BD
    reasoned, thought = vectors.reasoned_BD, vectors.reasoned_target_BD
    tokens = float(vectors.nll_B.sum().detach()) / float(vectors.num_tokens_B.sum())
    assert {name: float(value.detach()) for name, value in found.items()} == pytest.approx(
        {
            "direct": 2 * term(direct, target, [True] * ROWS),
            "reasoned": 3 * term(reasoned, thought, asked),
            "cross_query": 5 * term(reasoned, target, both),
            "cross_target": 5 * term(direct, thought, thought_of),
            "next_token": 7 * tokens,
        },
        rel=1e-5,
    )


def test_detached_writing_trains_the_head_alone() -> None:
    backbone, batch = vlm(), thoughtful(0, 5)
    alone = {"direct": 0.0, "reasoned": 1e-30, "cross": 0.0, "next_token": 1.0}

    def trained(detach: bool) -> set[str]:
        loss = total(pair_vectors(backbone, batch, detach=detach), batch, **alone)
        return {n for n, g in gradients(backbone, loss).items() if g.abs().max() > 1e-9}

    assert trained(True) == {"model.lm_head.weight"}
    assert len(trained(False)) > 20


def test_logits_are_made_only_where_writing_is_trained() -> None:
    backbone, batch = vlm(), thoughtful(0, 5)
    read: list[int] = []
    backbone.model.lm_head.register_forward_hook(lambda *args: read.append(1))
    silent = pair_vectors(backbone, batch, writes=False)
    assert not read
    assert not silent.nll_B.any()
    spoken = pair_vectors(backbone, batch)
    assert read
    assert torch.equal(spoken.reasoned_BD, silent.reasoned_BD)
    assert torch.equal(spoken.num_tokens_B, silent.num_tokens_B)


def test_settings_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not write"):
        ContrastiveEmbedder(joint(tmp_path), losses=PathLosses(next_token=1.0))
    with pytest.raises(ValueError, match="need rationales"):
        PathLosses(reasoned=0.0, cross=1.0)


def module_of(start: Path, cell: Any) -> ContrastiveEmbedder:
    _, cache, checkpointing, lora = cell
    return ContrastiveEmbedder(
        load_backbone(str(start)),
        partial(torch.optim.SGD, lr=0.1),
        num_warmup_steps=1,
        lora=LoraSettings(2) if lora else None,
        gradient_cache=cache,
        gradient_checkpointing=checkpointing,
        losses=ALL,
    )


def assert_cells(folder: Path, name: str, cells: list[Any]) -> None:
    """Two ranks leave what one process with the whole batch leaves."""
    start = folder / "start"
    vlm(name).save_pretrained(start)
    expected = {}
    for lora in {cell[3] for cell in cells}:
        module = module_of(start, (None, None, False, lora))
        whole = twice([joined(SPLITS)])
        trainer_of(folder / f"lora-{lora}", max_steps=2).fit(module, datamodule=whole)
        expected[lora] = weights(folder / f"lora-{lora}")

    def train(rank: int) -> None:
        for number, cell in enumerate(cells):
            trainer = rank_trainer(rank, folder / str(number), cell[0])
            trainer.fit(module_of(start, cell), datamodule=twice(SPLITS))

    run_ranks(train, seconds=300)
    untrained = load_backbone(str(start)).encode(SPLITS[0].targets).detach()
    for number, cell in enumerate(cells):
        vectors = [
            load_backbone(str(path / "backbone")).encode(SPLITS[0].targets).detach()
            for path in (folder / str(number), folder / f"lora-{cell[3]}")
        ]
        assert (vectors[0] - vectors[1]).abs().max() < 1e-4, cell
        assert (vectors[0] - untrained).abs().max() > 1e-2, cell


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3_vl", "qwen2_5_vl"])
def test_every_cell_trains_the_same_model(name: str, tmp_path: Path) -> None:
    assert_cells(tmp_path, name, CELLS)
