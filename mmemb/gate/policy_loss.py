"""The loss of a gate by the name of its estimator, and the old policy of GRPO."""

from __future__ import annotations

from copy import deepcopy
from typing import Literal, final

import torch
from torch import Tensor

from mmemb.gate.heads import DepthHead
from mmemb.gate.policy_gradients import exact_loss, grpo_loss, reinforce_loss, supervised_loss
from mmemb.records.loss_term import LossTerm

Estimator = Literal["reinforce", "exact", "grpo", "supervised"]

OLD_POLICY_STEPS = 4
"""Steps for which `grpo` samples from one policy; with 1 its clipping would never act."""


def policy_loss(
    estimator: Estimator,
    logit_BA: Tensor,
    reward_BA: Tensor,
    *,
    old_logit_BA: Tensor | None = None,
    uniform_BJ: Tensor | None = None,
    valid_B: Tensor | None = None,
) -> LossTerm:
    """Returns the loss of an estimator.

    Args:
        estimator: its name.
        logit_BA: of the policy.
        reward_BA: of every depth.
        old_logit_BA: of an older policy; `grpo` needs it.
        uniform_BJ: noise in [0, 1); those that sample need it.
        valid_B: states that take part.

    Raises:
        ValueError: there is no such estimator.
    """
    # These two are told the reward of every depth, so they sample nothing.
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
    """A copy of the head that is renewed every few steps; it belongs to no module."""

    def __init__(self) -> None:
        self._head: DepthHead | None = None

    @torch.no_grad()
    def logits(self, head: DepthHead, state_BS: Tensor, step: int) -> Tensor:
        """Returns the logits (B, A) of the policy that `grpo` samples from at this step."""
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
