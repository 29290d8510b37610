"""Fits a gate in its planted world by three estimators, and measures their gradients' noise.

Shapes: B queries, S state width, A depths, J sampled actions, M minibatches, N their rows,
P parameters.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from experiments.planted.gate import PlantedGate
from mmemb.gate.heads import MlpDepthHead
from mmemb.gate.policy_loss import OLD_POLICY_STEPS, policy_loss
from mmemb.records.loss_term import LossTerm

Estimator = Literal["reinforce", "exact", "grpo"]
ESTIMATORS: tuple[Estimator, ...] = ("reinforce", "exact", "grpo")


def estimate(
    estimator: Estimator,
    logit_BA: Tensor,
    reward_BA: Tensor,
    generator: torch.Generator,
    old_logit_BA: Tensor | None = None,
    num_samples: int = 4,
) -> LossTerm:
    """Returns the loss of one estimator; `grpo` samples from the old policy, by default this."""
    uniform_BJ = torch.rand(len(logit_BA), num_samples, generator=generator)

    return policy_loss(
        estimator,
        logit_BA,
        reward_BA,
        old_logit_BA=logit_BA if old_logit_BA is None else old_logit_BA,
        uniform_BJ=uniform_BJ,
    )


def fit_gate(
    gate: PlantedGate,
    estimator: Estimator,
    generator: torch.Generator,
    *,
    num_steps: int = 150,
    learning_rate: float = 0.1,
) -> MlpDepthHead:
    """Fits a linear head on the observed rewards, all queries in every step."""
    state_BS, reward = gate.batch.inputs.embedding_BD, gate.observed_reward
    head = MlpDepthHead(state_BS.shape[1], num_depths=reward.shape[1], hidden_dim=0)
    head.standardise(state_BS)
    optimizer = torch.optim.Adam(head.parameters(), lr=learning_rate)

    for step in range(num_steps):
        logit_BA = head(state_BS)
        # With a policy of this very step, clipping would never act.
        if step % OLD_POLICY_STEPS == 0:
            old_BA = logit_BA.detach()

        term = estimate(estimator, logit_BA, reward, generator, old_BA)
        optimizer.zero_grad()
        (term.sum / term.count).backward()
        optimizer.step()
    return head


def gradient_draws(
    gate: PlantedGate,
    estimator: Estimator,
    logit_BA: Tensor,
    generator: torch.Generator,
    *,
    num_draws: int = 1000,
    batch_size: int = 64,
) -> Tensor:
    """Returns (M, P) gradients of a linear head on random minibatches, all at one policy.

    Args:
        gate: states and rewards.
        estimator: whose gradient.
        logit_BA: the policy.
        generator: draws minibatches first, then actions: equal seeds give equal minibatches.
        num_draws: M.
        batch_size: queries of a minibatch, drawn with replacement.
    """
    row_N = torch.randint(len(logit_BA), (num_draws * batch_size,), generator=generator)

    # The head is linear, so its gradient is the slope at the logits times the input: no loop
    # over M.
    drawn_NA = logit_BA.detach()[row_N].requires_grad_()
    term = estimate(estimator, drawn_NA, gate.observed_reward[row_N], generator)
    slope_NA = torch.autograd.grad(term.sum / batch_size, drawn_NA)[0]

    state_NS = gate.batch.inputs.embedding_BD[row_N]
    input_NS = torch.cat([state_NS, torch.ones(len(row_N), 1)], 1)  # weights and bias

    product_MAS = slope_NA.view(num_draws, batch_size, -1).mT @ input_NS.view(
        num_draws, batch_size, -1
    )
    return product_MAS.flatten(1)


def noise_to_signal(gradient_MP: Tensor) -> float:
    """Returns the total variance of a gradient by the squared length of its mean.

    >>> noise_to_signal(torch.tensor([[0.0], [2.0]]))
    2.0
    """
    return (gradient_MP.var(0).sum() / gradient_MP.mean(0).square().sum()).item()
