"""The figure of the planted world: precision, differences, regrets and coverage."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.planted.coverage import NUM_CLUSTERS
from experiments.planted.estimators import ESTIMATORS
from experiments.planted.selection import CONTRASTS, WEAK
from experiments.planted.study import COVERAGE_BAR, KEEP_RATES, MAX_REGRET


def draw(result: Mapping[str, Any]) -> bytes:
    """Draws precision, differences, regrets and coverage as PNG."""
    import matplotlib as mpl

    # Before pyplot: the study also runs on machines without a screen.
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    with mpl.rc_context(
        {"font.size": 15, "axes.titlesize": 17, "axes.grid": True, "grid.alpha": 0.3}
    ):
        figure, axes = plt.subplots(2, 2, figsize=(18, 14), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.2, h_pad=0.2)

        _draw_precision(axes[0, 0], result["contrasts"])
        _draw_differences(axes[0, 1], result["contrasts"])
        _draw_regrets(axes[1, 0], result["gates"])
        _draw_coverage(axes[1, 1], result["coverage"])

        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=90)
        plt.close(figure)
    return file.getvalue()


def _finish(axis: Any, title: str, columns: int, names: Sequence[str] = ()) -> None:
    """Adds title and legend; with names, one row of the panel each, set apart by lines."""
    axis.set_title(title, pad=12)
    axis.legend(
        ncols=columns, loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False,
        columnspacing=1.4, handletextpad=0.5,
    )  # fmt: skip

    if names:
        axis.set_yticks(-np.arange(len(names)), names)
        axis.set_ylim(0.5 - len(names), 0.5)
        axis.grid(visible=False, axis="y")
        for place in range(1, len(names)):
            axis.axhline(0.5 - place, color="0.8", linewidth=1)


def _bounds(rows: Sequence[Mapping[str, float]], name: str) -> tuple[Any, Any]:
    columns = ([row[key] for row in rows] for key in (name, "low", "high"))
    mean, low, high = (100 * np.array(column, dtype=np.float64) for column in columns)
    return mean, [mean - low, high - mean]


def _draw_precision(axis: Any, rows: Mapping[str, Any]) -> None:
    rate = str(KEEP_RATES[0])

    places = -np.arange(len(rows))
    findings = [row[rate] for row in rows.values()]

    offsets = np.linspace(0.3, -0.3, len(CONTRASTS))
    for offset, name, marker in zip(offsets, CONTRASTS, "osD^P", strict=True):
        values = [100 * np.mean(row["precision"][name]) for row in findings]
        axis.plot(values, places + offset, marker, markersize=10, label=name)

    for key, style, label in (("chance", ":", "chance"), ("ceiling", "-", "oracle")):
        values = [100 * row[key] for row in findings]
        lines = axis.vlines(values, places - 0.4, places + 0.4, "black", style)
        lines.set_label(label)

    axis.set_xlim(0, 104)
    axis.set_xlabel("helpful among the kept (%)")

    title = f"Which contrast finds the truth, {100 * KEEP_RATES[0]:.0f} % kept"
    _finish(axis, title, 4, list(rows))


def _draw_differences(axis: Any, rows: Mapping[str, Any]) -> None:
    places = -np.arange(len(rows))
    offsets = iter((0.3, 0.1, -0.1, -0.3))
    for weak, colour in zip(WEAK, ("tab:blue", "tab:orange"), strict=True):
        for rate, marker in zip(KEEP_RATES, "os", strict=True):
            differences = [row[str(rate)]["differences"][weak] for row in rows.values()]

            mean, bars = _bounds(differences, "mean")
            label = f"margin - {weak}, {100 * rate:.0f} % kept"
            axis.errorbar(
                mean, places + next(offsets), xerr=bars, label=label,
                fmt=marker, color=colour, markersize=7, capsize=4,
            )  # fmt: skip

    axis.axvline(0, color="black")
    axis.set_xlabel("difference in points, 95 % over concepts")
    _finish(axis, "Margin against the weak contrasts", 2, list(rows))


def _draw_regrets(axis: Any, rows: Mapping[str, Any]) -> None:
    places = -np.arange(len(rows))
    for offset, name, marker in zip((0.2, 0.0, -0.2), ESTIMATORS, "osD", strict=True):
        values = 100 * np.array([row[name]["regret"] for row in rows.values()])
        spread = values.std(1, ddof=1) if values.shape[1] > 1 else None
        axis.errorbar(
            values.mean(1), places + offset, xerr=spread, fmt=marker, markersize=9, capsize=4,
            label=name,
        )  # fmt: skip

    bar = axis.axvline(100 * MAX_REGRET, color="black", linestyle="--")
    bar.set_label(f"bar: {100 * MAX_REGRET:.0f} %")
    axis.set_xlim(left=-0.3)
    axis.set_xlabel("regret (% of the oracle gap), mean and sd over seeds")

    _finish(axis, "Which estimator finds the gate's optimum", 4, list(rows))


def _draw_coverage(axis: Any, rows: Mapping[str, Any]) -> None:
    low, high = COVERAGE_BAR
    axis.axhspan(100 * low, 100 * high, color="tab:green", alpha=0.12, label="bar: 90 to 98 %")
    axis.axhline(95, color="black", linestyle="--", label="nominal")

    places = np.arange(len(NUM_CLUSTERS))
    shifts = np.linspace(-0.24, 0.24, len(rows))

    for shift, marker, (name, row) in zip(shifts, "osD^P", rows.items(), strict=False):
        mean, bars = _bounds([row[str(num)] for num in NUM_CLUSTERS], "coverage")
        axis.errorbar(
            places + shift, mean, yerr=bars, fmt=marker, markersize=9,
            capsize=4, label=name,
        )  # fmt: skip

    axis.set_xticks(places, [f"{num} clusters" for num in NUM_CLUSTERS])
    axis.set_ylabel("intervals that hold the truth (%)")
    _finish(axis, "Coverage of the cluster bootstrap", 3)
