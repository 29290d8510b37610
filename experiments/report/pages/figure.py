"""The report's figure: quality against cost as the gate's price moves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.report.policies.decisions import ALWAYS, NEVER
from experiments.runs.ranked_test import shown_name

COLOURS = ("tab:blue", "tab:orange")


def draw(
    path: Path,
    frontiers: Mapping[str, list[dict[str, Any]]],
    rows: Mapping[str, dict[str, Any]],
    title: str,
) -> Any:
    """Writes the figure and returns it, for TensorBoard.

    Args:
        path: of the picture.
        frontiers: name of a gate -> its points.
        rows: the table's rows, each a marker.
        title: of the figure.
    """
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for colour, (name, points) in zip(COLOURS, frontiers.items(), strict=False):
        points = sorted(points, key=lambda point: point["tokens"])
        tokens = [point["tokens"] for point in points]
        if all(point["low"] is not None for point in points):  # enough concepts for a band
            low, high = ([100 * p[end] for p in points] for end in ("low", "high"))
            axes.fill_between(tokens, low, high, alpha=0.12, color=colour)
        values = [100 * point["recall@1"] for point in points]
        axes.plot(tokens, values, "-", color=colour, label=f"{name}, 95 % over concepts")

    # Random choices of the same price lie on the line between never and always.
    ends = [
        (rows[name]["reasoning_tokens"], 100 * rows[name]["recall@1"]["mean"])
        for name in (NEVER, ALWAYS)
    ]

    axes.plot(*zip(*ends, strict=True), "--", color="grey", label="random")
    markers = "osD^*PvX<>"
    for marker, (name, row) in zip(markers, rows.items(), strict=False):
        value = 100 * row["recall@1"]["mean"]
        axes.plot(row["reasoning_tokens"], value, marker, markersize=9, label=name)

    axes.set_xlabel("reasoning tokens per query")
    axes.set_ylabel("Recall@1, mean over tasks (%)")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8)

    figure.savefig(path, dpi=120)

    # pyplot keeps every open figure, and with it its memory, to the end of the process.
    plt.close(figure)
    return figure


def draw_tests(path: Path, first: Mapping[str, Any], title: str) -> Any:
    """Writes a figure of the first table and returns it: each row with its interval, and chance.

    Args:
        path: of the picture.
        first: figures of the first table.
        title: of the figure.
    """
    plt = _pyplot()
    rows, headline = first["rows"], first["headline"]
    figure, axes = plt.subplots(figsize=(8, 1.5 + 0.5 * len(rows)), layout="constrained")

    for place, row in enumerate(rows.values()):
        interval = row[headline]
        if interval["low"] is not None:  # enough concepts for an interval
            bounds = 100 * interval["low"], 100 * interval["high"]
            axes.plot(bounds, (place, place), "-", color=COLOURS[0], linewidth=3, alpha=0.5)
        axes.plot(100 * interval["mean"], place, "o", color=COLOURS[0], markersize=9)

    axes.axvline(100 * first["chance"][headline], linestyle="--", color="grey", label="chance")
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(f"{shown_name(headline)}, mean over tasks (%), 95 % over concepts")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(loc="best", fontsize=8)

    figure.savefig(path, dpi=120)
    plt.close(figure)
    return figure


def _pyplot() -> Any:
    import matplotlib as mpl

    # Before pyplot: a report is also made on machines without a screen.
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    return plt
