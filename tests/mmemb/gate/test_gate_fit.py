"""Heads fitted on cached depth values: every estimator finds what pays, and collapse is seen."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor

from experiments.report.policies.fit_head import fit_head
from mmemb.gate.collapse import collapsed_to
from mmemb.gate.heads import MlpDepthHead
from mmemb.gate.policy_gradients import exact_loss, supervised_loss
from mmemb.gate.policy_loss import Estimator, OldPolicy, policy_loss
from mmemb.losses.terms import combine

STATE_NS = torch.randn(400, 6, generator=torch.Generator().manual_seed(0))
REWARD_NA = torch.stack([torch.zeros(400), STATE_NS[:, 0], 0.5 * STATE_NS[:, 1]], dim=1)


def regret_of(head: MlpDepthHead) -> float:
    with torch.inference_mode():
        chosen_N = head(STATE_NS).argmax(1, keepdim=True)
    return (REWARD_NA.amax(1) - REWARD_NA.gather(1, chosen_N)[:, 0]).mean().item()


@pytest.mark.parametrize("estimator", get_args(Estimator))
def test_every_estimator_finds_what_pays_among_three_depths(estimator: Estimator) -> None:
    head = MlpDepthHead(6, 3, hidden_dim=0)
    fit_head(
        head, STATE_NS, REWARD_NA, estimator, num_steps=150,
        make_optimizer=lambda p: torch.optim.Adam(p, lr=0.05),
    )  # fmt: skip
    never = REWARD_NA.amax(1).mean().item()
    assert regret_of(head) < 0.12 * never
    assert not head.training


def test_a_seed_decides_and_the_global_generator_is_left_alone() -> None:
    before, num_threads = torch.get_rng_state(), torch.get_num_threads()
    heads = [MlpDepthHead(6, 3, hidden_dim=0) for _ in range(2)]
    state = torch.get_rng_state()
    for head in heads:
        fit_head(head, STATE_NS, REWARD_NA, "reinforce", num_steps=5, seed=3)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.get_num_threads() == num_threads
    torch.set_rng_state(before)
    assert torch.equal(heads[0].output.weight, heads[1].output.weight)


def test_the_loss_of_a_name_is_that_loss() -> None:
    logit_NA = torch.randn(400, 3, generator=torch.Generator().manual_seed(1))
    valid_N = STATE_NS[:, 2] > 0
    for name, loss in (("exact", exact_loss), ("supervised", supervised_loss)):
        found = policy_loss(name, logit_NA, REWARD_NA, valid_B=valid_N)
        assert torch.equal(found.sum, loss(logit_NA, REWARD_NA, valid_N).sum)
    with pytest.raises(ValueError, match="'ppo'"):
        policy_loss("ppo", logit_NA, REWARD_NA, uniform_BJ=torch.rand(400, 2))


@pytest.mark.parametrize("estimator", get_args(Estimator))
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_rows_that_take_no_part_may_hold_anything(estimator: Estimator, broken: float) -> None:
    """NaN * 0 is NaN: a mask behind the arithmetic would break every gradient."""
    random = torch.Generator().manual_seed(0)
    logit_BA, old_BA, reward_BA = (torch.randn(6, 3, generator=random) for _ in range(3))
    valid_B = torch.tensor([True, False, True, True, False, True])
    noise_BJ = torch.rand(6, 4, generator=random)

    def gradient(logit_BA: Tensor, old_BA: Tensor, reward_BA: Tensor) -> Tensor:
        logit_BA = logit_BA.clone().requires_grad_()
        term = policy_loss(
            estimator,
            logit_BA,
            reward_BA,
            old_logit_BA=old_BA,
            uniform_BJ=noise_BJ,
            valid_B=valid_B,
        )
        return torch.autograd.grad(combine(term), logit_BA)[0]

    clean = gradient(logit_BA, old_BA, reward_BA)
    tables = [torch.where(valid_B[:, None], x, broken) for x in (logit_BA, old_BA, reward_BA)]
    assert torch.equal(gradient(*tables), clean)
    assert clean[valid_B].abs().max() > 0


@pytest.mark.parametrize("estimator", get_args(Estimator))
def test_without_an_eligible_row_the_loss_is_0_and_joined(estimator: Estimator) -> None:
    logit_BA = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = combine(
        policy_loss(
            estimator,
            logit_BA,
            torch.full((3, 2), torch.nan),
            old_logit_BA=logit_BA,
            uniform_BJ=torch.rand(3, 2),
            valid_B=torch.zeros(3, dtype=torch.bool),
        )
    )
    assert loss.item() == 0
    assert torch.autograd.grad(loss, logit_BA)[0].tolist() == torch.zeros(3, 2).tolist()


def test_the_old_policy_is_some_steps_old() -> None:
    head, old = MlpDepthHead(6, 2, hidden_dim=0), OldPolicy()
    first = old.logits(head, STATE_NS, 0)
    torch.nn.init.ones_(head.output.bias)
    assert torch.equal(old.logits(head, STATE_NS, 3), first)
    assert not torch.equal(old.logits(head, STATE_NS, 4), first)


def test_the_old_policy_survives_a_resume() -> None:
    head, old, resumed = MlpDepthHead(6, 2, hidden_dim=0), OldPolicy(), OldPolicy()
    resumed.load_state_dict(head, old.state_dict())  # saved before the first step

    first = old.logits(head, STATE_NS, 0)
    torch.nn.init.ones_(head.output.bias)
    resumed.load_state_dict(head, old.state_dict())
    assert torch.equal(resumed.logits(head, STATE_NS, 3), first)


def test_supervision_counts_a_query_by_what_it_can_lose() -> None:
    reward_NA = torch.tensor([[0.0, 2.0], [0.0, 0.0]])
    term = supervised_loss(torch.zeros(2, 2), reward_NA)
    assert term.sum.item() == pytest.approx(2 * 0.6931, abs=1e-3)


def test_collapse_is_seen_at_any_depth() -> None:
    assert collapsed_to(torch.zeros(50, dtype=torch.long), 3) == 0
    assert collapsed_to(torch.tensor([2] * 99 + [0]), 3) == 2
    assert collapsed_to(torch.tensor([2] * 9 + [0]), 3) is None
    assert collapsed_to(torch.tensor([], dtype=torch.long), 3) is None
