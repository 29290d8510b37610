"""`planted.md`: what was found where the truth is known, as tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.planted.coverage import NUM_CLUSTERS
from experiments.planted.estimators import ESTIMATORS
from experiments.planted.selection import CONTRASTS
from experiments.planted.study import KEEP_RATES, PAIRS_PER_CONCEPT
from experiments.tables import Table, points
from experiments.templates import markdown_page

Rows = Mapping[str, Mapping[str, Any]]
"""Name of a row -> its figures."""


def page(result: Mapping[str, Any]) -> str:
    """Returns the whole of `planted.md`.

    Args:
        result: the content of `planted.json`.
    """
    return markdown_page(
        "planted/planted.md.j2",
        made=result["made"],
        bars=result["bars"],
        pairs_per_concept=PAIRS_PER_CONCEPT,
        keep_rate=KEEP_RATES[0],
        contrasts=contrast_table(result["contrasts"]),
        differences=difference_table(result["contrasts"]),
        readings=reading_table(result["readings"]),
        gates=gate_table(result["gates"]),
        coverage=coverage_table(result["coverage"]),
    )


def contrast_table(settings: Rows) -> Table:
    """Returns the share of helpful rationales among the kept, between chance and the oracle."""

    def cells(row: Mapping[str, Any]) -> list[str]:
        precisions = [np.mean(row["precision"][name]) for name in CONTRASTS]
        return [f"{100 * value:.1f}" for value in (row["chance"], *precisions, row["ceiling"])]

    return _by_keep_rate(settings, ["chance", *CONTRASTS, "oracle"], cells)


def difference_table(settings: Rows) -> Table:
    """Returns the margin's precision minus that of each other contrast."""
    others = [name for name in CONTRASTS if name != "margin"]

    def cells(row: Mapping[str, Any]) -> list[str]:
        return [points(row["differences"][name]) for name in others]

    return _by_keep_rate(settings, [f"- {name}" for name in others], cells)


def _by_keep_rate(
    settings: Rows, headings: Sequence[str], cells: Callable[[Mapping[str, Any]], list[str]]
) -> Table:
    rows = [
        [name, f"{100 * float(rate):.0f} %", *cells(row)]
        for name, rates in settings.items()
        for rate, row in rates.items()
    ]
    return Table(["shares", "kept", *headings], rows)


def reading_table(readings: Rows) -> Table:
    """Returns the precision of each contrast where the scores were read in other ways."""
    rows = [
        [name, *(f"{100 * row[contrast]:.1f}" for contrast in CONTRASTS)]
        for name, row in readings.items()
    ]
    return Table(["reading", *CONTRASTS], rows)


def gate_table(gates: Rows) -> Table:
    """Returns regret and gradient of each estimator on each gate."""
    rows = []
    for name, by_estimator in gates.items():
        exact_noise = np.array(by_estimator["exact"]["noise"])
        for estimator in ESTIMATORS:
            values = {key: np.array(value) for key, value in by_estimator[estimator].items()}
            regret, noise = 100 * values["regret"], values["noise"] / exact_noise

            # A single seed has no spread.
            spread = regret.std(ddof=1) if len(regret) > 1 else float("nan")
            cells = (f"{noise.mean():.2f}", f"{values['cosine'].mean():.3f}")
            rows.append([name, estimator, f"{regret.mean():.2f} ({spread:.2f})", *cells])

    return Table(["gate", "estimator", "regret, %", "noise", "cosine"], rows)


def coverage_table(designs: Rows) -> Table:
    """Returns the share of intervals that hold the truth, and the side where the others lie."""
    rows = [
        [name, *(_coverage(row[str(number)]) for number in NUM_CLUSTERS)]
        for name, row in designs.items()
    ]
    return Table(["values", *(f"{number} clusters" for number in NUM_CLUSTERS)], rows)


def _coverage(row: Mapping[str, float]) -> str:
    sides = f"{100 * row['below']:.1f} below, {100 * row['above']:.1f} above"
    return f"{points({**row, 'mean': row['coverage']})}; {sides}"
