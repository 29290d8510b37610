"""Budgets that are calibrated again on unlabelled queries are kept on such queries."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmemb.gate.adaptive_embedder import AdaptiveEmbedder
from mmemb.records.inputs import Media, Side
from tests.fixtures.other_traffic import CALIBRATED, TRAFFIC, calibrated_elsewhere
from tests.fixtures.tiny_gated import tiny_backbone

PICTURE = Side(media=(Media("image", "p", pixels=torch.zeros(3, 8, 8, dtype=torch.uint8)),))


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> AdaptiveEmbedder:
    return calibrated_elsewhere(tmp_path_factory.mktemp("elsewhere"))


def share(embedder: AdaptiveEmbedder, texts: list[str], budget: float) -> float:
    direct = embedder.embed([Side(text) for text in texts])
    return float((embedder.decide(direct, budget) > 0).double().mean())


def test_a_budget_is_kept_on_the_own_traffic(tmp_path: Path) -> None:
    own = calibrated_elsewhere(tmp_path)
    assert share(own, CALIBRATED, 0.25) == 0.25
    assert share(own, TRAFFIC, 0.25) > 0.9, "other queries, other shares"

    own.calibration = own.calibrate(TRAFFIC, batch_size=7)
    assert share(own, TRAFFIC, 0.25) == 0.25
    assert share(own, TRAFFIC, 0.5) == 0.5


def test_costs_are_those_of_before_or_given(embedder: AdaptiveEmbedder) -> None:
    kept = embedder.calibrate(TRAFFIC)
    assert kept.mean_tokens().tolist() == [0.0, 9.0]
    assert kept.milliseconds == (10.0, 110.0)
    assert kept.max_cost("tokens") == 9.0

    measured = embedder.calibrate(TRAFFIC, token_costs=[0.0, 30.0])
    assert measured.max_cost("tokens") == 30.0
    assert measured.price(7.5, "tokens") == embedder.calibrate(
        TRAFFIC, token_costs=[0.0, 30.0]
    ).price(7.5, "tokens"), "the same queries give the same price"


def test_only_queries_that_can_reason_count(embedder: AdaptiveEmbedder) -> None:
    scores = embedder.gate_scores([TRAFFIC[0], PICTURE, TRAFFIC[1]])
    assert scores.num_queries == 3
    assert scores.keys == (Side(TRAFFIC[0]).digest, Side(TRAFFIC[1]).digest)
    assert scores.logit_CA.shape == (2, 2)

    with pytest.raises(ValueError, match="no query of the calibration can reason"):
        embedder.calibrate([PICTURE])
    with pytest.raises(ValueError, match="has no gate, so there is no budget to calibrate"):
        AdaptiveEmbedder(tiny_backbone()).calibrate(TRAFFIC)
