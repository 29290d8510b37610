"""Where the gate's optimum is known, estimators must find it; their closed forms."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from experiments.planted.estimators import (
    ESTIMATORS,
    Estimator,
    fit_gate,
    gradient_draws,
    noise_to_signal,
)
from experiments.planted.gate import (
    GATES,
    TOKEN_COST,
    PlantedGate,
    gain_directions,
    oracle_gap,
    planted_gate,
    regret,
)
from mmemb.gate.heads import MlpDepthHead
from mmemb.gate.policy_gradients import exact_loss, grpo_loss, reinforce_loss
from mmemb.records.loss_term import LossTerm


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _slope(logit_BA: Tensor, term: LossTerm) -> Tensor:
    return torch.autograd.grad(term.sum, logit_BA)[0]


def _every_draw(logit_A: Tensor, num_samples: int) -> list[tuple[list[int], Tensor, float]]:
    """All actions that J samples can take: actions, noise (1, J) that leads there, probability."""
    policy_A = logit_A.detach().softmax(0)
    middle_A = policy_A.cumsum(0) - policy_A / 2
    draws = itertools.product(range(len(policy_A)), repeat=num_samples)
    return [
        (list(a), middle_A[list(a)][None], math.prod(policy_A[list(a)].tolist())) for a in draws
    ]


@pytest.mark.parametrize("name", GATES)
def test_the_optimum_is_a_linear_head(name: str) -> None:
    gate = planted_gate(2000, generator=_generator(), **GATES[name])
    state_BS, reward = gate.batch.inputs.embedding_BD, gate.true_reward
    head = MlpDepthHead(state_BS.shape[1], num_depths=reward.shape[1], hidden_dim=0)
    with torch.no_grad():
        head.output.weight.copy_(gain_directions(*head.output.weight.shape[::-1]).T)
        head.output.bias.copy_(-TOKEN_COST * gate.batch.cost_BA[0])
    assert regret(head(state_BS), reward) == pytest.approx(0, abs=1e-6)
    best_A = reward.argmax(1).bincount(minlength=reward.shape[1]) / len(reward)
    assert best_A.min() > 0.2, "every depth is the best one of many queries"
    assert oracle_gap(reward) > 0.3


@pytest.mark.parametrize("luck", [None, 0.15])
def test_noise_is_unbiased_and_luck_is_rare(luck: float | None) -> None:
    gate = planted_gate(20_000, num_depths=3, noise=2.0, luck=luck, generator=_generator())
    noise_BA = gate.batch.depth_value_BA - gate.true_depth_value_BA
    assert noise_BA[:, 0].abs().max() == 0
    assert noise_BA[:, 1:].mean().item() == pytest.approx(0, abs=4 * 2 / 40_000**0.5)
    assert noise_BA[:, 1:].std().item() == pytest.approx(2, rel=0.03)
    up = (noise_BA[:, 1:] > 0).float().mean().item()
    assert up == pytest.approx(luck or 0.5, abs=0.01)


@pytest.mark.parametrize("num_depths", [2, 3])
def test_mean_of_reinforce_over_every_draw_is_exact(num_depths: int) -> None:
    logit = torch.tensor([[0.3, -0.5, 1.0]])[:, :num_depths].double().requires_grad_()
    reward = torch.tensor([[0.0, 2.0, -1.0]])[:, :num_depths].double()
    mean = sum(
        chance * _slope(logit, reinforce_loss(logit, reward, uniform_BJ=noise))
        for _, noise, chance in _every_draw(logit[0], 3)
    )
    assert torch.allclose(mean, _slope(logit, exact_loss(logit, reward)), atol=1e-9)


@pytest.mark.parametrize("gap", [0.01, -0.3, 5.0])
@pytest.mark.parametrize("logit", [-2.0, 0.0, 1.5])
def test_with_two_depths_grpo_sees_the_sign_of_the_gap_alone(gap: float, logit: float) -> None:
    """With two samples, in closed form: exact's gradient, had every gap been 1 or -1."""
    logit_1A = torch.tensor([[0.0, logit]]).double().requires_grad_()
    reward = torch.tensor([[0.0, gap]]).double()
    mean = sum(
        chance * _slope(logit_1A, grpo_loss(logit_1A, reward, logit_1A, uniform_BJ=noise))
        for _, noise, chance in _every_draw(logit_1A[0], 2)
    )
    signs = exact_loss(logit_1A, reward.sign())
    assert torch.allclose(mean, _slope(logit_1A, signs), atol=1e-9)


@pytest.mark.parametrize("step", [0.0, 0.1, 1.0])
def test_gradient_of_grpo_is_that_of_the_surrogate_by_hand(step: float) -> None:
    """A sample counts unless the ratio has already moved as far as its advantage wants."""
    old = torch.tensor([[0.3, -0.5, 1.0]]).double()
    new = (old + step * torch.tensor([[1.0, -1.0, 0.5]])).requires_grad_()
    reward_A = [0.0, 2.0, -1.0]
    policy_A, old_A = new.detach()[0].softmax(0), old[0].softmax(0)
    clipped = 0
    for actions, noise, _ in _every_draw(old[0], 3):
        rewards = [reward_A[a] for a in actions]
        mean = sum(rewards) / 3
        spread = math.sqrt(sum((r - mean) ** 2 for r in rewards) / 3)
        expected = torch.zeros(3).double()
        for action, reward in zip(actions, rewards, strict=True):
            advantage = (reward - mean) / max(spread, 1e-6)
            ratio = (policy_A[action] / old_A[action]).item()
            if (advantage > 0 and ratio > 1.2) or (advantage < 0 and ratio < 0.8):
                clipped += 1
                continue
            score_A = torch.eye(3)[action] - policy_A  # of the log-probability
            expected -= advantage * ratio * score_A / 3
        term = grpo_loss(new, torch.tensor([reward_A]).double(), old, uniform_BJ=noise)
        assert torch.allclose(_slope(new, term)[0], expected, atol=1e-9)
    assert bool(clipped) == (step == 1.0)


@pytest.fixture(scope="module")
def noisy() -> PlantedGate:
    return planted_gate(1000, noise=2.0, luck=0.15, generator=_generator())


def test_gradient_draws_are_those_of_a_linear_head(noisy: PlantedGate) -> None:
    state_BS, reward = noisy.batch.inputs.embedding_BD, noisy.observed_reward
    head = MlpDepthHead(8, hidden_dim=0)  # mean 0 and scale 1: the state as it is
    torch.nn.init.normal_(head.output.weight, generator=_generator())
    drawn_MP = gradient_draws(noisy, "exact", head(state_BS), _generator(3), num_draws=2)
    row_MB = torch.randint(1000, (2 * 64,), generator=_generator(3)).view(2, 64)
    for found_P, row_B in zip(drawn_MP, row_MB, strict=True):
        term = exact_loss(head(state_BS[row_B]), reward[row_B])
        weight, bias = torch.autograd.grad(
            term.sum / term.count, [head.output.weight, head.output.bias]
        )
        expected = torch.cat([weight, bias[:, None]], 1).flatten()
        assert torch.allclose(found_P, expected, atol=1e-5)


def test_sampling_adds_variance_and_only_grpo_adds_bias(noisy: PlantedGate) -> None:
    logit_BA = fit_gate(noisy, "exact", _generator(), num_steps=5)(noisy.batch.inputs.embedding_BD)
    drawn = {
        e: gradient_draws(noisy, e, logit_BA, _generator(1), num_draws=200) for e in ESTIMATORS
    }
    exact_P = drawn["exact"].mean(0)
    cosine = {e: torch.cosine_similarity(d.mean(0), exact_P, dim=0) for e, d in drawn.items()}
    assert cosine["reinforce"] > 0.97
    assert cosine["grpo"] < 0.9
    assert noise_to_signal(drawn["reinforce"]) > 1.2 * noise_to_signal(drawn["exact"])


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_regret_of_the_gate_goes_to_zero_without_noise(estimator: Estimator) -> None:
    gate, test = (planted_gate(1000, generator=_generator(seed)) for seed in range(2))
    head = fit_gate(gate, estimator, _generator(), num_steps=80)
    gap = oracle_gap(test.true_reward)
    assert regret(head(test.batch.inputs.embedding_BD), test.true_reward) < 0.02 * gap


def test_where_luck_is_rare_grpo_stays_away_from_the_optimum() -> None:
    how = GATES["2 depths, rare luck"]
    gate, test = (planted_gate(1000, generator=_generator(seed), **how) for seed in range(2))
    gap, regrets = oracle_gap(test.true_reward), {}
    for estimator in ESTIMATORS:
        head = fit_gate(gate, estimator, _generator())
        logit_BA = head(test.batch.inputs.embedding_BD)
        regrets[estimator] = regret(logit_BA, test.true_reward) / gap
        if estimator == "grpo":  # it shuts where reasoning pays on average, but not in the median
            pays_B = test.true_reward.argmax(1) == 1
            assert (logit_BA.argmax(1) == 0)[pays_B].float().mean() > 0.2
    assert max(regrets["exact"], regrets["reinforce"]) < 0.05 < regrets["grpo"]


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["reinforce", "exact"])
@pytest.mark.parametrize("name", [name for name, how in GATES.items() if "noise" in how])
def test_regret_falls_with_the_number_of_queries(estimator: Estimator, name: str) -> None:
    """It goes to 0: noise is all that stands between a gate and its optimum."""
    test = planted_gate(10_000, generator=_generator(99), **GATES[name])
    gap, means = oracle_gap(test.true_reward), []
    for num_queries in (500, 8000):
        found = []
        for seed in range(4):
            gate = planted_gate(num_queries, generator=_generator(seed), **GATES[name])
            head = fit_gate(gate, estimator, _generator(seed))
            found.append(regret(head(test.batch.inputs.embedding_BD), test.true_reward) / gap)
        means.append(sum(found) / len(found))
    assert means[1] < 0.02
    assert means[1] < means[0] / 4


def test_what_never_and_always_lose() -> None:
    reward = torch.tensor([[0.0, 2.0], [0.0, -1.0]])
    constant = [regret(torch.eye(2)[a].expand(2, -1), reward) for a in range(2)]
    assert constant == [1.0, 0.5]
    assert oracle_gap(reward) == min(constant)


@pytest.mark.parametrize("wrong", [{"num_depths": 1}, {"noise": -1.0}, {"luck": 1.0}, {"dim": 1}])
def test_bad_gates(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="a planted gate of"):
        planted_gate(10, **wrong, generator=_generator())
