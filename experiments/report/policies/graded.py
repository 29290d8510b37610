"""Graded depth against a binary gate: fitted alike on the same depth values, area against area."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from experiments.report.data.query_table import Bools, QueryTable
from experiments.report.policies.comparisons import mean_over_tasks
from experiments.report.policies.decisions import Policy
from experiments.report.policies.frontier import (
    area_N,
    area_of,
    budgets_of,
    points_of,
    policies_along,
)
from experiments.report.policies.gates import fitted_logits
from mmemb.gate.budget import BudgetCalibration
from mmemb.records.batches import DepthValueBatch
from mmemb.records.gate_state import check_parts

SEEDS = (0, 1, 2)


def graded_against_binary(
    splits: Mapping[str, DepthValueBatch],
    gate: Mapping[str, Any],
    test: QueryTable,
    chosen_N: Bools,
) -> dict[str, Any]:
    """Returns frontiers of the first seed, areas of all, and the paired difference of the areas.

    Args:
        splits: depth values by split; those of `test` in the order of the table that was cut by
        chosen_N: which of them `test` holds.
        gate: settings of the gate's own run.
        test: the queries of tasks with eligible ones.
    """
    deepest = len(test.depths) - 1
    kinds = {"graded": list(range(deepest + 1)), "binary": [0, deepest]}
    areas, frontiers = {}, {}
    for name, depths in kinds.items():
        along = [_along(splits, gate, test, chosen_N, depths, seed) for seed in SEEDS]

        # One fit is a draw of its seed: areas are averaged over seeds before they are compared.
        areas[name] = np.mean([area_N(test, policies) for policies, _ in along], axis=0)

        policies, budgets = along[0]
        frontiers[name] = {
            "points": points_of(test, policies, budgets),
            "area": area_of(test, policies),
        }

    difference = mean_over_tasks(test, areas["graded"] - areas["binary"])
    return frontiers | {"graded_minus_binary": asdict(difference), "seeds": list(SEEDS)}


def _along(
    splits: Mapping[str, DepthValueBatch],
    gate: Mapping[str, Any],
    test: QueryTable,
    chosen_N: Bools,
    depths: Sequence[int],
    seed: int,
) -> tuple[list[Policy], list[float]]:
    state = check_parts(gate["state"] or ["embedding"])
    on_test, on_calibration = (
        fitted_logits(splits, state, gate, "exact", seed, split=split, depths=depths)
        for split in ("test", "calibration")
    )

    # Calibration reads eligible queries only: the others are never put to the gate.
    batch = splits["calibration"]
    cost_CA = batch.cost_BA[:, list(depths)][batch.eligible_B]
    keys = [k for k, e in zip(batch.keys, batch.eligible_B.tolist(), strict=True) if e]
    calibration = BudgetCalibration.calibrate(on_calibration[batch.eligible_B], cost_CA, keys)

    logit_NA = on_test.numpy()[chosen_N]
    return policies_along(test, logit_NA, calibration, depths), budgets_of(calibration)
