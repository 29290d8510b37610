"""Fits a small depth head on cached utilities, all queries in every step: for reports and studies.

`lightning_modules.GatingPolicy` trains the gate that is used; this knows neither files nor parts.
Shapes: N queries, S state width, A depths, J sampled actions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Literal, final

import torch
from torch import Tensor

from mmemb.gate.gating import DepthHead, exact_loss, grpo_loss, reinforce_loss, supervised_loss
from mmemb.losses.infonce import LossTerm
from mmemb.records.batches import SidecarRow, UtilityBatch

Estimator = Literal["reinforce", "exact", "grpo", "supervised"]
OLD_POLICY_STEPS = 4
"""How long `grpo` samples from one policy; with 1 its clipping would never act."""

COLLAPSED = 0.02
"""A gate that chooses one depth for all but this share has collapsed."""


def policy_loss(
    estimator: Estimator,
    logit_BA: Tensor,
    reward_BA: Tensor,
    *,
    old_logit_BA: Tensor | None = None,
    uniform_BJ: Tensor | None = None,
    valid_B: Tensor | None = None,
) -> LossTerm:
    """The loss of an estimator; those that sample need noise, and `grpo` an older policy."""
    if estimator == "exact":
        return exact_loss(logit_BA, reward_BA, valid_B)
    if estimator == "supervised":
        return supervised_loss(logit_BA, reward_BA, valid_B)
    assert uniform_BJ is not None
    if estimator == "reinforce":
        return reinforce_loss(logit_BA, reward_BA, uniform_BJ=uniform_BJ, valid_B=valid_B)
    if estimator != "grpo":
        raise ValueError(f"estimator {estimator!r}: expected reinforce, exact, grpo or supervised")
    assert old_logit_BA is not None
    return grpo_loss(logit_BA, reward_BA, old_logit_BA, uniform_BJ=uniform_BJ, valid_B=valid_B)


@final
class OldPolicy:
    """A copy of the head that is renewed every few steps; no part of any module."""

    def __init__(self) -> None:
        self._head: DepthHead | None = None

    @torch.no_grad()
    def logits(self, head: DepthHead, state_BS: Tensor, step: int) -> Tensor:
        """(B, A) of the policy that `grpo` samples from at this step."""
        if self._head is None or step % OLD_POLICY_STEPS == 0:
            self._head = deepcopy(head).eval()
        return self._head(state_BS)

    def state_dict(self) -> dict[str, Tensor]:
        """The older weights, for a checkpoint; empty before the first step."""
        return self._head.state_dict() if self._head is not None else {}

    def load_state_dict(self, head: DepthHead, state: dict[str, Tensor]) -> None:
        """Restores the older weights into a copy of `head`, so that a resumed fit samples alike."""
        if state:
            self._head = deepcopy(head).eval()
            self._head.load_state_dict(state)


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


def collapsed_to(depth_N: Tensor, num_depths: int) -> int | None:
    """The one depth that (nearly) all queries take, or None.

    >>> collapsed_to(torch.tensor([1] * 99 + [0]), 2), collapsed_to(torch.tensor([0, 1]), 2)
    (1, None)
    """
    share_A = torch.bincount(depth_N, minlength=num_depths) / max(len(depth_N), 1)
    depth = int(share_A.argmax())
    return depth if len(depth_N) and share_A[depth] >= 1 - COLLAPSED else None


def collapse_warning(depth_N: Tensor, depths: Sequence[str]) -> str:
    """What to say of a gate that takes one depth for all; nothing if it does not."""
    depth = collapsed_to(depth_N, len(depths))
    if depth is None:
        return ""
    return (
        f"warning: the gate has collapsed: {depths[depth]!r} for at least 98 % of the calibration "
        "queries. That is right where one depth is best for all; otherwise change the price or "
        "what the gate sees.\n"
    )


def decision_rows(logit_BA: Tensor, depths_B: Tensor, batch: UtilityBatch) -> list[SidecarRow]:
    """What `decisions/` says of B queries: depth taken, probability of thinking, logits, cost."""
    cost_B = batch.cost_BA.gather(1, depths_B[:, None])[:, 0]
    thinks_B = 1 - logit_BA.softmax(1)[:, 0]
    return [
        SidecarRow(
            key,
            {
                "json": {
                    "depth": int(depths_B[row]),
                    "probability": round(float(thinks_B[row]), 6),
                    "logits": [round(value, 6) for value in logit_BA[row].tolist()],
                    "cost": float(cost_B[row]),
                }
            },
            batch.metas[row],
        )
        for row, key in enumerate(batch.keys)
    ]
