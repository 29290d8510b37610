"""The planted world of the gate: its best depth is known, what is observed of it is noisy.

Source: docs/method.md section 10. How a gate learns stands in `estimators.py`. Shapes:
B queries, S state width, A depths.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from mmemb.gate.policy_gradients import reward_BA
from mmemb.records.batches import DepthValueBatch
from mmemb.records.gate_state import GateInputs

FULL_COST = 40.0
TOKEN_COST = 0.01
"""Price of a token, as in the pocket configurations: the deepest pays where it gains over 0.4."""

GATES: dict[str, dict[str, Any]] = {
    "2 depths, no noise": {},
    "2 depths, normal noise": {"noise": 2.0},
    "2 depths, rare luck": {"noise": 2.0, "luck": 0.15},
    "3 depths, normal noise": {"num_depths": 3, "noise": 2.0},
    "3 depths, rare luck": {"num_depths": 3, "noise": 2.0, "luck": 0.15},
}
"""Arguments of `planted_gate`. The noise is as large as what is to be learned: the deepest gain has
a standard deviation of 1.9."""


@final
@dataclass(frozen=True, slots=True)
class PlantedGate:
    """States that a gate may learn from, and the policy that it should find.

    Attributes:
        batch: states, and depth values as one draw of a rationale shows them.
        true_depth_value_BA: their expectation, a linear function of the state.
    """

    batch: DepthValueBatch
    true_depth_value_BA: Tensor

    @property
    def observed_reward(self) -> Tensor:
        """(B, A) rewards to train on. Nothing is clipped: the mean of a clipped reward would be
        another one, and the optimum no longer known."""
        return _priced(self.batch.depth_value_BA, self.batch.cost_BA)

    @property
    def true_reward(self) -> Tensor:
        """(B, A) expected rewards, by which a policy's regret is measured."""
        return _priced(self.true_depth_value_BA, self.batch.cost_BA)


def _priced(depth_value_BA: Tensor, cost_BA: Tensor) -> Tensor:
    return reward_BA(depth_value_BA, cost_BA, clip=math.inf, token_cost=TOKEN_COST)


def planted_gate(
    num_queries: int = 2000,
    dim: int = 8,
    *,
    num_depths: int = 2,
    noise: float = 0.0,
    luck: float | None = None,
    generator: torch.Generator,
) -> PlantedGate:
    """Draws queries whose state tells how much each depth gains on average, by linear functions.

    A linear head can therefore hold the optimum. The deepest costs 40 tokens, the others evenly
    less; each depth is the best one of many queries.

    Args:
        num_queries: B.
        dim: S, at least 2.
        num_depths: A, at least 2.
        noise: standard deviation of an observed depth value around its mean; direct has none, as an
            embedding has no luck.
        luck: None makes the noise normal; else it takes two values, and this is how often it is
            upwards. Its mean is 0: the rarer, the larger, and the median is below the mean.
        generator: the only source of randomness.
    """
    if num_queries < 1 or dim < 2 or num_depths < 2 or noise < 0 or not 0 < (luck or 0.5) < 1:
        raise ValueError(
            f"a planted gate of {num_queries} queries, width {dim}, {num_depths} depths, noise "
            f"{noise} and luck {luck}: expected at least 1, 2, 2 and 0, and luck between 0 and 1"
        )

    state_BS = torch.randn(num_queries, dim, generator=generator)
    true_BA = -1 - torch.rand(num_queries, 1, generator=generator)
    true_BA = true_BA + state_BS @ gain_directions(dim, num_depths)

    noise_BA = noise * _unit_noise(true_BA.shape, luck, generator)

    # Direct embedding draws no rationale, so nothing in it depends on luck.
    noise_BA[:, 0] = 0

    batch = DepthValueBatch(
        keys=tuple(f"planted-{i}" for i in range(num_queries)),
        metas=tuple({"task": "planted", "concept": str(i)} for i in range(num_queries)),
        inputs=GateInputs.of_embedding(state_BS),
        depth_value_BA=true_BA + noise_BA,
        cost_BA=torch.linspace(0, FULL_COST, num_depths).expand(num_queries, -1),
        eligible_B=torch.ones(num_queries, dtype=torch.bool),
    )
    return PlantedGate(batch, true_BA)


def _unit_noise(shape: torch.Size, luck: float | None, generator: torch.Generator) -> Tensor:
    if luck is None:
        return torch.randn(shape, generator=generator)

    is_up_BA = torch.rand(shape, generator=generator) < luck

    # Two values with mean 0 and variance 1, whatever the luck.
    return torch.where(is_up_BA, math.sqrt((1 - luck) / luck), -math.sqrt(luck / (1 - luck)))


def gain_directions(dim: int, num_depths: int) -> Tensor:
    """Returns (S, A): a depth's mean gain over direct is the state times its column.

    The deepest rises along the state's coordinates; a shallower one shares in it by its depth and
    adds a wave of its own.
    """
    place_S = torch.linspace(-1, 1, dim)
    columns = [torch.zeros(dim)]
    for depth in range(1, num_depths):
        part = depth / (num_depths - 1)
        columns.append(part * place_S + (1 - part) * torch.cos(math.pi * depth * place_S))
    return torch.stack(columns, 1)


def regret(logit_BA: Tensor, reward_BA: Tensor) -> float:
    """Returns the average loss of the policy's choice against the best depth of each query.

    >>> regret(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
    2.0
    """
    chosen_B = reward_BA.gather(1, logit_BA.argmax(1, keepdim=True))[:, 0]
    return (reward_BA.amax(1) - chosen_B).mean().item()


def oracle_gap(reward_BA: Tensor) -> float:
    """Returns the average gain of each query's best depth over the best constant depth.

    >>> oracle_gap(torch.tensor([[0.0, 2.0], [0.0, -1.0]]))
    0.5
    """
    return (reward_BA.amax(1).mean() - reward_BA.mean(0).amax()).item()
