"""Fits a head on all queries at once, for reports and studies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from mmemb.gate.heads import DepthHead
from mmemb.gate.policy_loss import Estimator, OldPolicy, policy_loss


def fit_head(
    head: DepthHead,
    state_NS: Tensor,
    reward_NA: Tensor,
    estimator: Estimator = "exact",
    *,
    num_steps: int = 300,
    num_samples: int = 4,
    make_optimizer: Callable[..., torch.optim.Optimizer] | None = None,
    seed: int = 0,
) -> DepthHead:
    """Standardises and trains `head` in place; returns it in eval mode.

    Args:
        head: untrained.
        state_NS: of eligible queries.
        reward_NA: of each depth.
        estimator: of the policy gradient.
        num_steps: over all queries.
        num_samples: actions per state of the estimators that sample.
        make_optimizer: called with the parameters; by default AdamW, lr 1e-3, weight decay 1.
        seed: of dropout and of the actions.
    """
    make = make_optimizer or (lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=1.0))
    generator, old = torch.Generator().manual_seed(seed), OldPolicy()

    # A report's fit must not move the random numbers of whatever runs around it.
    with torch.random.fork_rng(devices=[]), one_thread():
        torch.manual_seed(seed)
        head.standardise(state_NS)
        optimizer = make(head.train().parameters())

        for step in range(num_steps):
            noise_NJ = torch.rand(len(state_NS), num_samples, generator=generator)
            old_NA = old.logits(head, state_NS, step) if estimator == "grpo" else None
            loss = policy_loss(
                estimator, head(state_NS), reward_NA, old_logit_BA=old_NA, uniform_BJ=noise_NJ
            )

            optimizer.zero_grad()
            (loss.sum / loss.count).backward()
            optimizer.step()
    return head.eval()


@contextmanager
def one_thread() -> Iterator[None]:
    """A head's matrices are so small that threads wait for one another longer than they compute."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
