"""Losses of the gate: REINFORCE, GRPO, exact and supervised (docs/method.md section 7)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmemb.gate.budget import unit_hash
from mmemb.records.loss_term import LossTerm


def reward_BA(depth_value_BA: Tensor, cost_BA: Tensor, *, clip: float, token_cost: float) -> Tensor:
    """clip(u_a - u_0, -c, c) - lambda * cost(a), docs/method.md section 7.

    >>> value_BA, cost_BA = torch.tensor([[-5.0, -1.0]]), torch.tensor([[0.0, 40.0]])
    >>> reward_BA(value_BA, cost_BA, clip=3.0, token_cost=0.01)
    tensor([[0.0000, 2.6000]])
    """
    return (depth_value_BA - depth_value_BA[:, :1]).clamp(-clip, clip) - token_cost * cost_BA


def exact_loss(logit_BA: Tensor, reward_BA: Tensor, valid_B: Tensor | None = None) -> LossTerm:
    """Minus the expected reward, in closed form over cached depth values."""
    logit_BA, reward_BA, valid_B = _without_invalid(logit_BA, reward_BA, valid_B)
    return _term(-(logit_BA.softmax(1) * reward_BA).sum(1), valid_B)


def reinforce_loss(
    logit_BA: Tensor,
    reward_BA: Tensor,
    *,
    uniform_BJ: Tensor,
    valid_B: Tensor | None = None,
) -> LossTerm:
    """REINFORCE with the mean of the state's OTHER samples as baseline.

    The mean of its gradient equals that of `exact_loss`; its value means nothing.

    Args:
        logit_BA: of the policy.
        reward_BA: of every depth; only those of sampled depths are read.
        uniform_BJ: noise in [0, 1), J >= 2 samples per state (`uniform_by_key`: the same on any
            number of ranks).
        valid_B: states that take part (eligible queries); the others may hold anything.
    """
    logit_BA, reward_BA, valid_B = _without_invalid(logit_BA, reward_BA, valid_B)
    num_samples = uniform_BJ.shape[1]
    if num_samples < 2:
        raise ValueError(f"a leave-one-out baseline needs 2 samples per state, not {num_samples}")

    log_policy_BA = logit_BA.log_softmax(1)
    action_BJ = _sample(log_policy_BA.detach(), uniform_BJ)
    reward_BJ = reward_BA.gather(1, action_BJ)

    # A baseline without the sample itself leaves the gradient's mean as it is.
    others_BJ = (reward_BJ.sum(1, keepdim=True) - reward_BJ) / (num_samples - 1)
    advantage_BJ = (reward_BJ - others_BJ).detach()
    return _term(-(advantage_BJ * log_policy_BA.gather(1, action_BJ)).mean(1), valid_B)


def grpo_loss(
    logit_BA: Tensor,
    reward_BA: Tensor,
    old_logit_BA: Tensor,
    *,
    uniform_BJ: Tensor,
    ratio_clip: float = 0.2,
    valid_B: Tensor | None = None,
) -> LossTerm:
    """GRPO: the clipped surrogate with advantages normalised within the group of a state's samples.

    Biased: with two depths a mixed group's advantages depend on its split alone, so the reward gap
    counts by its sign, not by its size.

    Args:
        logit_BA: of the policy that is trained.
        reward_BA: of every depth; only those of sampled depths are read.
        old_logit_BA: of the policy that samples, some steps old; no gradient.
        uniform_BJ: noise in [0, 1), J >= 2 samples per state.
        ratio_clip: how far the ratio of the two policies may move a sample.
        valid_B: states that take part.
    """
    if uniform_BJ.shape[1] < 2:
        raise ValueError(f"a group needs 2 samples per state, not {uniform_BJ.shape[1]}")

    old_logit_BA, _, _ = _without_invalid(old_logit_BA, reward_BA, valid_B)
    logit_BA, reward_BA, valid_B = _without_invalid(logit_BA, reward_BA, valid_B)
    old_BA = old_logit_BA.detach().log_softmax(1)
    action_BJ = _sample(old_BA, uniform_BJ)
    reward_BJ = reward_BA.gather(1, action_BJ)

    # Equal rewards have no spread, and no advantage either.
    spread_B1 = reward_BJ.std(1, keepdim=True, unbiased=False)
    advantage_BJ = (reward_BJ - reward_BJ.mean(1, keepdim=True)) / spread_B1.clamp(min=1e-6)

    log_ratio_BJ = logit_BA.log_softmax(1).gather(1, action_BJ) - old_BA.gather(1, action_BJ)
    ratio_BJ = log_ratio_BJ.exp()
    clipped_BJ = ratio_BJ.clamp(1 - ratio_clip, 1 + ratio_clip)
    surrogate_BJ = torch.minimum(ratio_BJ * advantage_BJ, clipped_BJ * advantage_BJ)
    return _term(-surrogate_BJ.mean(1), valid_B)


def supervised_loss(logit_BA: Tensor, reward_BA: Tensor, valid_B: Tensor | None = None) -> LossTerm:
    """Cross-entropy against the best depth, weighted by what the worst choice would lose.

    The baseline of a gate without reinforcement: it is given the reward of every depth.
    """
    logit_BA, reward_BA, valid_B = _without_invalid(logit_BA, reward_BA, valid_B)
    weight_B = reward_BA.amax(1) - reward_BA.amin(1)
    loss_B = -logit_BA.log_softmax(1).gather(1, reward_BA.argmax(1, keepdim=True))[:, 0]
    return _term(weight_B * loss_B, valid_B)


def uniform_by_key(keys: Sequence[str], num_samples: int, seed: int, step: int) -> Tensor:
    """(B, J) noise in [0, 1) that depends on key, seed and step alone, not on batch or rank.

    Seed and step are hashed apart: with their sum two seeds would be one training, some steps
    later.
    """
    draws = [[unit_hash("gate", seed, step, j, key) for j in range(num_samples)] for key in keys]
    return torch.tensor(draws, dtype=torch.float64).reshape(len(keys), num_samples)


def _sample(log_policy_BA: Tensor, uniform_BJ: Tensor) -> Tensor:
    edge_BA = log_policy_BA.exp().cumsum(1)[:, :-1].contiguous()
    # Rounded before it is moved: not every device has the float64 of the noise.
    uniform_BJ = uniform_BJ.to(edge_BA.dtype).to(edge_BA.device)
    return torch.searchsorted(edge_BA, uniform_BJ.contiguous(), right=True)


def _without_invalid(
    logit_BA: Tensor, reward_BA: Tensor, valid_B: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits and rewards with zeros in rows that do not take part, and which rows do.

    A loss that is masked at its end alone still has gradient 0 * NaN there, which is NaN.
    """
    if valid_B is None:
        valid_B = torch.ones(len(logit_BA), dtype=torch.bool, device=logit_BA.device)
    valid_B = valid_B.bool()
    kept_B1 = valid_B[:, None]
    return torch.where(kept_B1, logit_BA, 0.0), torch.where(kept_B1, reward_BA, 0.0), valid_B


def _term(value_B: Tensor, valid_B: Tensor) -> LossTerm:
    return LossTerm(torch.where(valid_B, value_B, 0.0).sum(), valid_B.sum())
