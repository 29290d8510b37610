"""`python -m experiments.planted`: what the method finds where the truth is known (METHOD 10).

Three questions, without a model in between: which contrast finds the helpful rationales at one keep
rate; which estimator brings the gate how near its optimum, and how noisy its gradient is; how often
the cluster bootstrap's 95 % interval holds the truth. Writes planted.json, planted.md and
planted.png. Needs no data; about two minutes on two busy cores.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from experiments.planted.coverage import NUM_CLUSTERS
from experiments.planted.estimators import ESTIMATORS
from experiments.planted.selection import CONTRASTS, WEAK
from experiments.planted.study import (
    COVERAGE_BAR,
    KEEP_RATES,
    MAX_REGRET,
    PAIRS_PER_CONCEPT,
    measure,
    num_steps,
)
from mmemb.storage.files import write_atomically
from mmemb.storage.json_files import write_json
from mmemb.storage.provenance import git_state, package_versions
from mmemb.storage.signals import exit_on_signals


def study(pairs: int, seeds: int, samples: int) -> dict[str, Any]:
    """Everything that the page and the figure show, as JSON data: `measure`, and what made it."""
    with tqdm(total=num_steps(seeds), desc="planted", unit="step") as bar:
        start = time.perf_counter()
        result = measure(pairs, seeds, samples, bar.update)
        seconds = time.perf_counter() - start

    commit, changes = git_state(Path(__file__).parent)
    made = {"pairs": pairs, "seeds": seeds, "samples": samples, "seconds": seconds}
    made |= {"git_commit": commit, "uncommitted_changes": bool(changes)}
    return result | {"made": made | {"versions": package_versions(), "cores": os.cpu_count()}}


def page(result: Mapping[str, Any]) -> str:
    """The whole of `planted.md`."""
    made = result["made"]
    bars = [
        f"* {'holds' if not missed else 'FAILS'}: {bar}" + "".join(f"\n    * {m}" for m in missed)
        for bar, missed in result["bars"].items()
    ]
    parts = [
        "# The planted world: what is found where the truth is known",
        f"{made['seeds']} worlds of {made['pairs']} pairs and 4 rationales in every setting; about "
        f"{PAIRS_PER_CONCEPT} pairs a concept, which is the cluster of every interval (95 %).",
        "\n".join(bars),
        "![contrasts, gates and coverage](planted.png)",
        "## Which contrast finds the helpful rationales",
        "Share of helpful ones among the kept (%), mean over worlds. Leaks are dropped first, by "
        "provenance. *Oracle*: the most that this keep rate allows; *chance*: keeping at random.",
        _contrast_table(result["contrasts"]),
        "Margin minus each other contrast, in points; only `raw` and `positive` are a bar.",
        _difference_table(result["contrasts"]),
        f"The mixed world read in other ways, at a keep rate of {100 * KEEP_RATES[0]:.0f} % (one "
        "world, every pair a concept of its own):",
        _table(
            ["reading", *CONTRASTS],
            [[k, *(_percent(row[c]) for c in CONTRASTS)] for k, row in result["readings"].items()],
        ),
        "## Which estimator finds the gate's optimum",
        "Regret on fresh queries by the oracle gap (oracle minus best constant depth), mean and sd "
        "over seeds. *Noise*: variance of a gradient on 64 queries by the squared length of its "
        "mean, as a multiple of exact's; *cosine*: of its mean with exact's, 1 = unbiased.",
        _gate_table(result["gates"]),
        "## Does a 95 % interval hold the truth as often as it says",
        _coverage_table(result["coverage"]),
        f"Made in {made['seconds']:.0f} s by commit {made['git_commit'] or 'unknown'}"
        f"{', with uncommitted changes' if made['uncommitted_changes'] else ''}; "
        + ", ".join(f"{name} {version}" for name, version in made["versions"].items()),
    ]
    return "\n\n".join(parts) + "\n"


def _contrast_table(rows: Mapping[str, Any]) -> str:
    def line(row: Mapping[str, Any]) -> list[str]:
        found = [np.mean(row["precision"][name]) for name in CONTRASTS]
        return [_percent(value) for value in (row["chance"], *found, row["ceiling"])]

    return _per_rate(rows, ["chance", *CONTRASTS, "oracle"], line)


def _difference_table(rows: Mapping[str, Any]) -> str:
    others = [name for name in CONTRASTS if name != "margin"]
    headings = [f"- {name}" for name in others]
    return _per_rate(rows, headings, lambda row: [_interval(row["differences"][c]) for c in others])


def _per_rate(
    rows: Mapping[str, Any], headings: list[str], line: Callable[[Any], list[str]]
) -> str:
    lines = [
        [name, f"{100 * float(rate):.0f} %", *line(row)]
        for name, rates in rows.items()
        for rate, row in rates.items()
    ]
    return _table(["shares", "kept", *headings], lines)


def _gate_table(rows: Mapping[str, Any]) -> str:
    lines = []
    for name, row in rows.items():
        exact = np.array(row["exact"]["noise"])
        for estimator in ESTIMATORS:
            values = {key: np.array(value) for key, value in row[estimator].items()}
            spread = 100 * values["regret"].std(ddof=1) if len(exact) > 1 else float("nan")
            noise = (values["noise"] / exact).mean()
            regret_text = f"{100 * values['regret'].mean():.2f} ({spread:.2f})"
            cosine = f"{values['cosine'].mean():.3f}"
            lines.append([name, estimator, regret_text, f"{noise:.2f}", cosine])
    return _table(["gate", "estimator", "regret, %", "noise", "cosine"], lines)


def _coverage_table(rows: Mapping[str, Any]) -> str:
    lines = [[n, *(_coverage(row[str(c)]) for c in NUM_CLUSTERS)] for n, row in rows.items()]
    return _table(["values", *(f"{c} clusters" for c in NUM_CLUSTERS)], lines)


def _coverage(row: Mapping[str, float]) -> str:
    sides = f"{100 * row['below']:.1f} below, {100 * row['above']:.1f} above"
    return f"{_interval({**row, 'mean': row['coverage']})}; {sides}"


def _table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    from experiments.report.pages.markdown_page import (
        markdown_table,  # brings Lightning: not for --help
    )

    return markdown_table(headings, lines)


def _interval(row: Mapping[str, float]) -> str:
    from experiments.report.pages.markdown_page import interval  # likewise

    return interval(row)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def draw(result: Mapping[str, Any]) -> bytes:
    """The figure as PNG: precision, differences, regrets and coverage."""
    import matplotlib as mpl

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
    """Title and legend; with names, one row of the panel each, from the top, set apart by lines."""
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
    found = [row[rate] for row in rows.values()]
    offsets = np.linspace(0.3, -0.3, len(CONTRASTS))
    for offset, name, marker in zip(offsets, CONTRASTS, "osD^P", strict=True):
        values = [100 * np.mean(row["precision"][name]) for row in found]
        axis.plot(values, places + offset, marker, markersize=10, label=name)
    for key, style, label in (("chance", ":", "chance"), ("ceiling", "-", "oracle")):
        values = [100 * row[key] for row in found]
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
            found = [row[str(rate)]["differences"][weak] for row in rows.values()]
            mean, bars = _bounds(found, "mean")
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


@exit_on_signals()
def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, writes the three files and prints the bars."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.planted",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--pairs", type=int, default=2000, help="of a world (default: 2000)")
    parser.add_argument("--seeds", type=int, default=3, help="worlds of a setting (default: 3)")
    parser.add_argument(
        "--samples", type=int, default=800,
        help="of a coverage at 40 clusters, fewer at more (default: 800)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("runs/planted"), help="folder to write")
    options = parser.parse_args(arguments)
    try:
        result = study(options.pairs, options.seeds, options.samples)
    except ValueError as error:
        sys.exit(f"error: {error}")
    write_atomically(options.out / "planted.png", draw(result))
    write_atomically(options.out / "planted.md", page(result).encode())
    write_json(options.out / "planted.json", result)
    for bar, missed in result["bars"].items():
        print(f"{'holds' if not missed else 'FAILS'}: {bar}", *missed, sep="\n    ")
    print(f"{options.out}/planted.md, planted.png, planted.json")


if __name__ == "__main__":
    main()
