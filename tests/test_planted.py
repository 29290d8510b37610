"""METHOD 10: where the helpful rationales are known, the contrasts and the gate must find them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmemb.counterfactual import contrasts, false_helpful
from mmemb.gating import MlpDepthHead, exact_loss, reinforce_loss, reward_BA
from mmemb.planted import (
    FALSE_HELPFUL,
    HELPFUL,
    LEAKING,
    USELESS,
    PlantedWorld,
    keep_precision,
    kept_hits,
    planted_gate,
    planted_world,
    regret,
)
from mmemb.statistics import paired_bootstrap

NUM_PAIRS = 500


@pytest.fixture(scope="module")
def world() -> PlantedWorld:
    return planted_world(NUM_PAIRS, generator=torch.Generator().manual_seed(0))


def _contrasts(world: PlantedWorld) -> dict[str, Tensor]:
    """Without the leaks, which provenance drops before anything is compared."""
    found = contrasts(world.score(), num_hard=5)
    return {name: v.masked_fill(world.names_target, torch.nan) for name, v in found.items()}


def test_scores_are_laid_out_as_an_evaluator_does(world: PlantedWorld) -> None:
    score = world.score(0.5)
    assert score.shape == (NUM_PAIRS, 1 + 15, 1 + 4)
    direct = (world.query_BD * world.target_BD).sum(1) / 0.5
    assert torch.allclose(score[:, 0, 0], direct, atol=1e-5)
    assert world.kind_BK.unique().tolist() == [HELPFUL, USELESS, FALSE_HELPFUL, LEAKING]


@pytest.mark.parametrize("share", [0.3, 0.5])
@pytest.mark.parametrize("strong", ["gain", "margin"])
@pytest.mark.parametrize("weak", ["raw", "positive"])
def test_counterfactuals_beat_weak_contrasts(
    world: PlantedWorld, strong: str, weak: str, share: float
) -> None:
    found = _contrasts(world)
    strong_B, kept_B = kept_hits(found[strong], world.helpful, share)
    weak_B, weak_kept_B = kept_hits(found[weak], world.helpful, share)
    assert kept_B.sum() == weak_kept_B.sum()  # compared at one keep rate
    per_pair = kept_B.double().mean()
    difference = paired_bootstrap(strong_B / per_pair, weak_B / per_pair, range(NUM_PAIRS))
    assert difference.low > 0
    direct = keep_precision(found[strong], world.helpful, share)
    direct -= keep_precision(found[weak], world.helpful, share)
    assert difference.mean == pytest.approx(direct, abs=1e-6)


def test_false_helpful_ones_are_what_they_are_called(world: PlantedWorld) -> None:
    found = contrasts(world.score(), num_hard=5)
    chosen = world.kind_BK == FALSE_HELPFUL
    bad, everything = false_helpful(found["positive"][chosen], found["margin"][chosen])
    good, helpful = false_helpful(found["positive"][world.helpful], found["margin"][world.helpful])
    assert bad / everything > 0.4
    assert good / helpful < 0.02


def test_no_contrast_sees_a_leak(world: PlantedWorld) -> None:
    """Why two-sided provenance is a rule of its own: a leak looks better than what is right."""
    for name in ("gain", "margin"):
        contrast = contrasts(world.score(), num_hard=5)[name]
        assert contrast[world.names_target].mean() > 0.7 * contrast[world.helpful].mean()


@pytest.mark.parametrize("estimator", ["exact", "reinforce"])
def test_regret_of_the_gate_goes_to_zero(estimator: str) -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    batch, test = (planted_gate(1000, generator=generator) for _ in range(2))
    rewards = [reward_BA(b.utility_BA, b.cost_BA, clip=9.0, price=0.01) for b in (batch, test)]
    head = MlpDepthHead(8, hidden_dim=0)
    head.standardise(batch.inputs.embedding_BD)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.1)
    for _ in range(150):
        logit_BA = head(batch.inputs.embedding_BD)
        term = (
            exact_loss(logit_BA, rewards[0])
            if estimator == "exact"
            else reinforce_loss(logit_BA, rewards[0], 4, generator)
        )
        optimizer.zero_grad()
        (term.sum / term.count).backward()
        optimizer.step()
    never = regret(torch.tensor([[1.0, 0.0]]).expand(1000, -1), rewards[1])
    assert regret(head(test.inputs.embedding_BD), rewards[1]) < 0.02 * never
