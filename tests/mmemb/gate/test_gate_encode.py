"""AdaptiveEmbedder and a gate that sees scores or a prompt state: what it measures and saves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmemb.backbones import Backbone, OpenClipBackbone
from mmemb.gate.adaptive_embedder import AdaptiveEmbedder
from mmemb.gate.budget import BudgetCalibration
from mmemb.gate.latency import measure_latency
from mmemb.rationales import RationaleWriter, TableWriter
from mmemb.records.gate_state import score_shape
from mmemb.records.inputs import Media, Side
from tests.fixtures.paths import CLIP_TINY
from tests.fixtures.tiny_knower import KNOWN, STATES, TAU, Knower, opinionated

TEXTS = [Side(f"the capital of country {n}") for n in range(10)]
PICTURE = Side(media=(Media("image", "p", pixels=torch.zeros(3, 8, 8, dtype=torch.uint8)),))


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    torch.manual_seed(0)
    return OpenClipBackbone(str(CLIP_TINY), tokenizer="bytes")


@pytest.fixture(scope="module")
def gallery() -> Tensor:
    vectors_ND = torch.randn(5, 64, generator=torch.Generator().manual_seed(3))
    return torch.nn.functional.normalize(vectors_ND)


def adaptive(backbone: Backbone, name: str, writer: RationaleWriter) -> AdaptiveEmbedder:
    head = opinionated({"prompt_state": 64 + KNOWN, "scores": 3}[name])
    with torch.inference_mode():
        embedding_BD = backbone.eval().encode(TEXTS)
    head.mean_S[: embedding_BD.shape[1]] = {
        "prompt_state": embedding_BD.mean(0), "scores": torch.tensor([-1.0, 0.5, 1.0])
    }[name]  # fmt: skip
    return AdaptiveEmbedder(
        backbone, head, BudgetCalibration(), {"full": writer}, STATES[name], TAU
    )


@pytest.mark.parametrize("name", STATES)
def test_what_is_saved_decides_the_same_after_loading(
    tmp_path: Path, backbone: Backbone, gallery: Tensor, name: str
) -> None:
    saved = adaptive(backbone, name, Knower())
    saved.save_pretrained(tmp_path)
    loaded = AdaptiveEmbedder.from_pretrained(tmp_path, {"full": Knower()})
    sides = [PICTURE, *TEXTS]
    one, other = (embedder.encode(sides, gallery=gallery) for embedder in (saved, loaded))
    assert torch.equal(one.vectors_BD, other.vectors_BD)
    assert torch.equal(one.depths_B, other.depths_B)
    assert one.rationales == other.rationales
    assert (loaded.state, loaded.gallery_temperature) == (tuple(STATES[name]), TAU)


def test_a_prompt_state_is_asked_for_eligible_sides_and_for_no_forced_depth(
    backbone: Backbone, gallery: Tensor
) -> None:
    writer = Knower()
    embedder = adaptive(backbone, "prompt_state", writer)
    for depth in ("direct", "full"):
        embedder.encode(TEXTS, depth=depth)
    embedder.encode([PICTURE])
    assert writer.with_state == []
    embedder.encode([TEXTS[0], PICTURE, TEXTS[1]])
    assert writer.with_state == [TEXTS[0].text, TEXTS[1].text]
    without_state = Knower()
    adaptive(backbone, "scores", without_state).encode(TEXTS, gallery=gallery)
    assert without_state.with_state == []


@pytest.mark.parametrize("name", STATES)
def test_a_decision_is_linear_in_the_state_that_one_computes_by_hand(
    backbone: Backbone, gallery: Tensor, name: str
) -> None:
    embedder = adaptive(backbone, name, Knower())
    with torch.inference_mode():
        direct_BD = embedder.backbone.encode(TEXTS)
    state_BS = {
        "prompt_state": torch.cat([direct_BD, Knower().prompt_states(TEXTS)], dim=1),
        "scores": score_shape(direct_BD @ gallery.T / TAU),
    }[name]
    with torch.inference_mode():
        logit_BA = embedder.head(state_BS)
    found = embedder.encode(TEXTS, gallery=gallery)
    assert 0 < found.depths_B.sum() < len(TEXTS), "or this test shows nothing"
    assert found.depths_B.tolist() == (logit_BA[:, 1] > logit_BA[:, 0]).long().tolist()


def test_a_gallery_of_each_side_or_one_for_all(backbone: Backbone, gallery: Tensor) -> None:
    embedder = adaptive(backbone, "scores", Knower())
    one = embedder.encode(TEXTS, gallery=gallery)
    each = embedder.encode(TEXTS, gallery=[gallery] * len(TEXTS))
    turned = embedder.encode(TEXTS, gallery=[gallery.flip(0)] * len(TEXTS))
    assert torch.equal(one.depths_B, each.depths_B)
    assert torch.equal(one.depths_B, turned.depths_B), "the order of candidates does not matter"
    with pytest.raises(ValueError, match=r"no `gallery` was given to `encode`"):
        embedder.encode(TEXTS)


def test_latency_decides_with_the_candidates_that_it_is_given(
    backbone: Backbone, gallery: Tensor
) -> None:
    embedder = adaptive(backbone, "scores", Knower())
    calibrated = torch.zeros(2, 2), torch.tensor([[0.0, 10]] * 2), ["a", "b"]
    embedder.calibration = BudgetCalibration.calibrate(*calibrated)
    (found,) = measure_latency(embedder, ["a"], TEXTS[:1], [gallery])
    assert found.decided_ms > 0
    with pytest.raises(ValueError, match="no `gallery` was given"):
        measure_latency(embedder, ["a"], TEXTS[:1])


def test_prompt_states_that_were_measured_earlier_take_the_place_of_new_ones(
    backbone: Backbone,
) -> None:
    writer = Knower()
    embedder = adaptive(backbone, "prompt_state", writer)
    sides = [PICTURE, *TEXTS]
    direct = embedder.embed(sides)
    expected = embedder.decide(direct)
    writer.with_state.clear()

    prompt_states = [None, *Knower().prompt_states(TEXTS)]
    assert torch.equal(embedder.decide(direct, prompt_states=prompt_states), expected)
    assert writer.with_state == []
    with pytest.raises(ValueError, match=r"written about 'the capital of country 1': make the"):
        embedder.decide(direct, prompt_states=[*prompt_states[:2], None, *prompt_states[3:]])


def test_a_writer_that_cannot_be_read(backbone: Backbone, tmp_path: Path) -> None:
    (tmp_path / "facts.json").write_text('{"questions": {}, "countries": {}}')
    writer = TableWriter(str(tmp_path / "facts.json"))
    with pytest.raises(ValueError, match="Choose a gate state without `prompt_state`"):
        adaptive(backbone, "prompt_state", writer).encode(TEXTS)
