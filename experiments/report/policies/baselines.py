"""Ways to decide that learn no head: the oracle, a rule per task, a threshold."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def oracle_depth(depth_value_BA: Tensor, cost_BA: Tensor) -> Tensor:
    """The cheapest depth that reaches the query's best depth value, (B,).

    >>> oracle_depth(torch.tensor([[-1.0, -1.0], [-2.0, -1.0]]), torch.tensor([[0.0, 40.0]] * 2))
    tensor([0, 1])
    """
    best_BA = depth_value_BA >= depth_value_BA.amax(1, keepdim=True)
    return cost_BA.masked_fill(~best_BA, torch.inf).argmin(1)


def per_task_rule(reward_BA: Tensor, tasks: Sequence[str]) -> dict[str, int]:
    """The best constant depth of each task, of equals the cheaper.

    >>> per_task_rule(torch.tensor([[0.0, 1.0], [0.0, -2.0], [0.0, 1.0]]), ["a", "b", "a"])
    {'a': 1, 'b': 0}
    """
    rows = {task: [i for i, other in enumerate(tasks) if other == task] for task in tasks}
    return {task: int(reward_BA[chosen].mean(0).argmax()) for task, chosen in rows.items()}


def best_threshold(
    score_N: Sequence[float], gain_N: Sequence[float], weight_N: Sequence[float]
) -> float:
    """The threshold above which taking the gain is worth most in all; of equals the highest.

    Lies halfway between two neighbouring scores; infinite where nothing, or everything, is taken.

    Args:
        score_N: what is compared with the threshold.
        gain_N: what each row gains if it is above.
        weight_N: how much each row counts.

    >>> best_threshold([1.0, 2.0, 3.0], [-1.0, 2.0, -1.0], [1.0, 1.0, 1.0])
    1.5
    """
    rows = sorted(zip(score_N, gain_N, weight_N, strict=True), reverse=True)
    below_N = [score for score, _, _ in rows[1:]] + [-math.inf] * bool(rows)

    # Equal scores are taken together: a threshold between them would part them.
    best, total, threshold = 0.0, 0.0, math.inf
    for (score, gain, weight), below in zip(rows, below_N, strict=True):
        total += gain * weight
        if below < score and total > best:
            best, threshold = total, (score + below) / 2
    return threshold
