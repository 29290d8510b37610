"""The report's figure: quality against cost as the gate's threshold moves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.report.policies import value_of
from experiments.report.records import QueryTable
from experiments.report.tables import mean_over_tasks
from mmemb.budget import Thresholds

BUDGETS = tuple(np.linspace(0, 1, 21))


def frontier(table: QueryTable, thresholds: Thresholds) -> list[dict[str, float]]:
    """Quality and cost at budgets from 0 to 1, each spent in full on `calibration`."""
    points = []
    for budget in BUDGETS:
        open_B = thresholds.decide(
            torch.tensor(table.score_N), table.keys, float(budget), exact=True
        )
        share_N = open_B.numpy().astype(float) * table.eligible_N
        interval = mean_over_tasks(table, value_of(table.metric["recall@1"], share_N))
        points.append(
            {
                "budget": float(budget),
                "tokens": float(value_of(table.cost_NA, share_N).mean()),
                "invocation": float(share_N.sum() / max(table.eligible_N.sum(), 1)),
                "recall@1": interval.mean,
                "low": interval.low,
                "high": interval.high,
            }
        )
    return points


def area_under(points: list[dict[str, float]]) -> float:
    """Mean Recall@1 over the range of costs: area under the frontier, normalised by its width."""
    ordered = sorted(points, key=lambda point: point["tokens"])
    tokens = np.array([point["tokens"] for point in ordered])
    values = np.array([point["recall@1"] for point in ordered])
    width = tokens[-1] - tokens[0]
    steps = (values[1:] + values[:-1]) / 2 * np.diff(tokens)
    return float(steps.sum() / width) if width else float(values.mean())


def draw(
    path: Path, points: list[dict[str, float]], rows: Mapping[str, dict[str, Any]], title: str
) -> Any:
    """Writes the figure and returns it, for TensorBoard."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    points = sorted(points, key=lambda point: point["tokens"])
    tokens = [point["tokens"] for point in points]
    low, high = ([100 * p[name] for p in points] for name in ("low", "high"))
    axes.fill_between(tokens, low, high, alpha=0.15, color="tab:blue", label="95 % (concepts)")
    values = [100 * point["recall@1"] for point in points]
    axes.plot(tokens, values, "-", color="tab:blue", label="gate, as its threshold moves")
    ends = [
        (rows[n]["reasoning_tokens"], 100 * rows[n]["recall@1"]["mean"]) for n in list(rows)[:2]
    ]
    axes.plot(*zip(*ends, strict=True), "--", color="grey", label="random")
    markers = "osD^*P"
    for marker, (name, row) in zip(markers, rows.items(), strict=False):
        value = 100 * row["recall@1"]["mean"]
        axes.plot(row["reasoning_tokens"], value, marker, markersize=9, label=name)
    axes.set_xlabel("reasoning tokens per query")
    axes.set_ylabel("Recall@1, mean over tasks (%)")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return figure
