"""Policy gradients against the closed form, toys that must open and close, and budgets."""

from __future__ import annotations

import shutil
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from experiments.report.policies.baselines import oracle_depth
from mmemb.gate.heads import MlpDepthHead, load_head, save_head
from mmemb.gate.policy_gradients import exact_loss, reinforce_loss, reward_BA, uniform_by_key
from mmemb.records.loss_term import LossTerm


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _noise(logit: Tensor, num_samples: int, seed: int = 0) -> Tensor:
    return torch.rand(len(logit), num_samples, generator=_generator(seed))


def _gradient(logit: Tensor, term: LossTerm) -> Tensor:
    return torch.autograd.grad(term.sum / term.count, logit)[0]


def test_reward_is_clipped_and_priced() -> None:
    depth_value = torch.tensor([[-4.0, -3.0, 4.0]])
    cost = torch.tensor([[0.0, 10.0, 40.0]])
    assert reward_BA(depth_value, cost, clip=2.0, token_cost=0.05).tolist() == [[0.0, 0.5, 0.0]]


@pytest.mark.parametrize("num_depths", [2, 3])
@pytest.mark.parametrize("num_samples", [2, 4])
def test_mean_of_reinforce_is_exact(num_depths: int, num_samples: int) -> None:
    logit = torch.randn(3, num_depths, generator=_generator()).double().requires_grad_()
    reward = torch.tensor([[0.0, 2.0, -1.0], [1.0, 0.0, 0.5], [0.0, -1.0, 3.0]])
    reward = reward[:, :num_depths].double()
    exact = _gradient(logit, exact_loss(logit, reward))
    # The same three states many times: the mean over draws of one gradient.
    many = logit.repeat(40_000, 1)
    term = reinforce_loss(many, reward.repeat(40_000, 1), uniform_BJ=_noise(many, num_samples, 2))
    assert torch.allclose(_gradient(logit, term), exact, atol=4e-3)
    assert exact.abs().max() > 0.05


@given(value=st.floats(-10, 10), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_equal_rewards_have_no_gradient(value: float, seed: int) -> None:
    logit = torch.randn(5, 3, generator=_generator(seed)).requires_grad_()
    reward = torch.full((5, 3), value)
    sampled = _gradient(logit, reinforce_loss(logit, reward, uniform_BJ=_noise(logit, 4, seed)))
    assert sampled.abs().max() < 1e-5
    assert _gradient(logit, exact_loss(logit, reward)).abs().max() < 1e-5


def test_ineligible_states_are_left_out() -> None:
    logit = torch.zeros(2, 2, requires_grad=True)
    reward = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    term = exact_loss(logit, reward, torch.tensor([True, False]))
    gradient = _gradient(logit, term)
    assert term.count == 1
    assert gradient[0, 1] < 0
    assert gradient[1].abs().sum() == 0


def test_one_sample_has_no_baseline() -> None:
    with pytest.raises(ValueError, match="2 samples"):
        reinforce_loss(torch.zeros(1, 2), torch.zeros(1, 2), uniform_BJ=torch.zeros(1, 1))


def test_noise_depends_on_key_seed_and_step_alone() -> None:
    noise = uniform_by_key(["a", "b"], 3, seed=0, step=0)
    assert torch.equal(uniform_by_key(["b"], 3, seed=0, step=0)[0], noise[1])
    many = uniform_by_key([str(i) for i in range(2000)], 2, seed=0, step=0)
    assert many.mean().item() == pytest.approx(0.5, abs=0.02)
    assert uniform_by_key([], 2, seed=0, step=0).shape == (0, 2)


def test_no_two_trainings_share_noise() -> None:
    """Seed 1 at step 0 is not seed 0 at step 1: seeds are independent trainings."""
    draws = {
        tuple(uniform_by_key(["a"], 2, seed=seed, step=step)[0].tolist())
        for seed in range(12)
        for step in range(12)
    }
    assert len(draws) == 12 * 12


def test_actions_follow_the_policy() -> None:
    logit = torch.tensor([[0.0, 1.0, 2.0]]).repeat(20_000, 1)
    reward = torch.eye(3)[1].expand(20_000, -1)  # REINFORCE's gradient at depth 1, from samples
    logit.requires_grad_()
    gradient = torch.autograd.grad(
        reinforce_loss(logit, reward, uniform_BJ=_noise(logit, 8)).sum / 20_000, logit
    )[0].sum(0)
    p = torch.tensor([0.0, 1.0, 2.0]).softmax(0)
    assert gradient[1].item() == pytest.approx(-float(p[1] * (1 - p[1])), abs=0.01)


@pytest.mark.parametrize("estimator", ["exact", "reinforce"])
def test_opens_where_it_pays_and_stays_shut_where_it_costs(estimator: str) -> None:
    torch.manual_seed(0)
    state = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(16, 1)
    reward = torch.tensor([[0.0, 1.0], [0.0, -1.0]]).repeat(16, 1)
    head, generator = MlpDepthHead(2, hidden_dim=8), _generator()
    head.standardise(state)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(200):
        logit = head(state)
        exact = estimator == "exact"
        noise = torch.rand(len(logit), 4, generator=generator)
        sampled = reinforce_loss(logit, reward, uniform_BJ=noise)
        term = exact_loss(logit, reward) if exact else sampled
        optimizer.zero_grad()
        (term.sum / term.count).backward()
        optimizer.step()
    policy = head(state).softmax(1)
    assert policy[0, 1] > 0.95
    assert policy[1, 1] < 0.05


@pytest.mark.parametrize("hidden_dim", [0, 8])
def test_head_starts_undecided_standardises_and_is_saved(tmp_path: Path, hidden_dim: int) -> None:
    state = torch.randn(50, 4) * 100 + 7
    state[:, 3] = 5.0  # a constant must not divide by zero
    head = MlpDepthHead(4, num_depths=3, hidden_dim=hidden_dim)
    head.standardise(state)
    assert head(state).tolist() == torch.zeros(50, 3).tolist()
    torch.nn.init.normal_(head.output.weight)
    save_head(head, tmp_path / "gate")
    loaded = load_head(tmp_path / "gate")
    assert torch.equal(loaded.eval()(state), head.eval()(state))
    assert head(state).std() < 100


def test_loading_a_gate_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no saved gate"):
        load_head(tmp_path)
    (tmp_path / "config.json").write_text('{"class": "Popen"}')
    with pytest.raises(ValueError, match="'Popen'"):
        load_head(tmp_path)


def test_a_gate_of_another_width_is_refused_in_one_line(tmp_path: Path) -> None:
    save_head(MlpDepthHead(3, 2), tmp_path / "gate")
    save_head(MlpDepthHead(4, 2), tmp_path / "other")
    shutil.copy(tmp_path / "other/weights.pt", tmp_path / "gate")
    with pytest.raises(ValueError, match=r"do not fit \(Error\(s\) in .* Fit the gate again"):
        load_head(tmp_path / "gate")


def test_oracle_takes_the_cheapest_of_the_best() -> None:
    depth_value = torch.tensor([[-2.0, -1.0, -1.0], [-1.0, -2.0, -1.0]])
    assert oracle_depth(depth_value, torch.tensor([[0.0, 9.0, 5.0]] * 2)).tolist() == [2, 0]


def test_a_gate_that_breaks_off_leaves_the_one_before(tmp_path: Path) -> None:
    """Its weights would else lie under the settings of the old one."""
    old, new = MlpDepthHead(4, dropout=0.5), MlpDepthHead(4, dropout=0.1)
    torch.nn.init.ones_(new.output.bias)
    save_head(old, tmp_path / "gate")
    with (
        patch("mmemb.gate.heads.write_json", side_effect=OSError("no space is left")),
        pytest.raises(OSError, match="no space"),
    ):
        save_head(new, tmp_path / "gate")
    found = load_head(tmp_path / "gate")
    assert found.config()["dropout"] == 0.5
    assert found.output.bias.tolist() == [0.0, 0.0]
