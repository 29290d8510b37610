"""The temperature tau of a judge's scores, fitted on part `calibration`.

Shapes: B rows, C candidates (the target first; -inf pads).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor


def fit_temperature(
    score_BC: Tensor, *, low: float = 1e-3, high: float = 1e3, tolerance: float = 1e-5
) -> float:
    """Returns the tau that makes the true target (column 0) most likely under softmax(score / tau).

    The likelihood is concave in 1 / tau, so a golden-section search over log tau finds the one
    maximum; where there is none (all right, all wrong) it ends at the nearer bound.

    Args:
        score_BC: similarities on part `calibration`; -inf pads, rows whose target is NaN are left
            out. Scores that were divided by an old tau give the factor to that tau.
        low: smallest tau.
        high: largest tau.
        tolerance: width of the bracket in log tau at which the search ends.
    """
    score_BC = score_BC[~score_BC[:, 0].isnan()].double()
    if not len(score_BC):
        raise ValueError("no score to fit a temperature to: part `calibration` is empty")

    def loss(log_tau: float) -> float:
        return -float((score_BC / math.exp(log_tau)).log_softmax(1)[:, 0].mean())

    return math.exp(_golden_section(loss, math.log(low), math.log(high), tolerance))


def _golden_section(
    function: Callable[[float], float], low: float, high: float, tolerance: float
) -> float:
    # With this ratio one of the two inner points serves the next, shorter bracket too.
    ratio = (math.sqrt(5) - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = function(left), function(right)

    while high - low > tolerance:
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = function(right)

    return (low + high) / 2
