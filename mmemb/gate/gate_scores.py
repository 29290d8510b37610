"""What the gate says of many queries, from which budgets are calibrated.

Shapes: C queries that can reason, A depths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from torch import Tensor

from mmemb.gate.budget import BudgetCalibration


@final
@dataclass(frozen=True, slots=True, eq=False)
class GateScores:
    """The gate's logits of those queries that can reason.

    Attributes:
        keys: C names of the queries, which break ties; equal for equal queries.
        logit_CA: of the gate.
        num_queries: how many were asked about, those that cannot reason among them.
    """

    keys: tuple[str, ...]
    logit_CA: Tensor
    num_queries: int

    def of_rows(self, rows: Sequence[int]) -> GateScores:
        """Returns the scores of some of the C queries."""
        return GateScores(tuple(self.keys[r] for r in rows), self.logit_CA[list(rows)], len(rows))

    def calibrate(
        self, token_cost_A: Tensor, milliseconds: Sequence[float] = ()
    ) -> BudgetCalibration:
        """Returns the calibration on these queries, as a gate's fit makes it.

        Args:
            token_cost_A: tokens that a rationale is expected to have, at each depth.
            milliseconds: see `BudgetCalibration`.

        Raises:
            ValueError: no query can reason.
        """
        cost_CA = token_cost_A.expand(len(self.keys), -1)
        return BudgetCalibration.calibrate(self.logit_CA, cost_CA, self.keys, milliseconds)
