"""Builds a report from the sidecars: `report.json`, `report.md`, `report.png`, and links."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from callbacks.run_record import git_state, package_versions
from datamodules.evaluation import read_tasks
from experiments.report.figure import area_under, draw, frontier
from experiments.report.page import mix_table, page
from experiments.report.policies import GATED, NEVER, shares, value_of
from experiments.report.records import QueryTable, read_queries
from experiments.report.selection import selection_figures
from experiments.report.tables import comparisons, eligible_tasks, mean_over_tasks, row_figures
from mmemb.adaptive import read_settings
from mmemb.budget import Thresholds
from mmemb.files import link_atomically
from mmemb.lineage import write_json
from mmemb.records import EvaluationTask

NAMES = ("report.md", "report.png", "report.json")


def build(experiment: Path, data_root: str) -> dict[str, Any]:
    """Writes a report of the experiment's newest runs and prints its table.

    Args:
        experiment: e.g. `runs/pocket`; all stages must have run.
        data_root: the prepared data, for the tasks' declarations.
    """
    report = collect(experiment, data_root)
    folder = (
        experiment / f"{time.strftime('%Y%m%d-%H%M%S')}-report-{report['git_commit'] or 'nogit'}"
    )
    folder.mkdir(parents=True)
    title = f"{report['experiment']}: quality against cost, part test"
    figure = draw(folder / "report.png", report["frontier"], report["mix"], title)
    (folder / "report.md").write_text(page(report), encoding="utf-8")
    write_json(folder / "report.json", report)
    to_tensorboard(folder, report, figure)
    for name in NAMES:
        link_atomically(experiment / name, folder / name)
    print("\n" + mix_table(report["mix"]))
    print(f"\n{experiment}/report.md, report.png, report.json")
    return report


def collect(experiment: Path, data_root: str) -> dict[str, Any]:
    """Every figure of a report, as JSON data."""
    queries, tasks = read_queries(experiment), read_tasks(Path(data_root))
    gate = gate_settings(experiment)
    test = queries.of_parts("test")
    tuning = queries.of_parts("gate", "calibration")
    share = shares(test, tuning, gate["price"], gate["clip"])
    latency = read_latency(experiment)
    milliseconds = {name: milliseconds_of(name, latency) for name in share}
    thinking = [task.name for task in tasks if task.think]
    chosen = [task in set(eligible_tasks(test)) for task in test.tasks]
    mixed = test.of_tasks(eligible_tasks(test))
    thresholds = Thresholds.from_json(read_settings(experiment / "gate/adaptive")["thresholds"])
    points = frontier(mixed, thresholds)
    commit, diff = git_state(Path(__file__).parent)
    return {
        "experiment": experiment.name,
        "written": time.strftime("%Y-%m-%d %H:%M"),
        "git_commit": commit,
        "uncommitted_changes": bool(diff),
        "versions": package_versions(),
        "queries": len(test.keys),
        "eligible_queries": int(test.eligible_N.sum()),
        "concepts": len(set(test.concepts)),
        "latency": latency,
        "mix": {
            name: row_figures(mixed, share_N[chosen], milliseconds[name])
            for name, share_N in share.items()
        },
        "comparisons": comparisons(test, share, thinking),
        "frontier": points,
        "frontier_area": area_under(points),
        "tasks": {
            task.name: task_figures(task, test, share, milliseconds)
            for task in tasks
            if task.name in test.tasks
        },
        "selection": selection_figures(experiment),
        "swap_test": swap_test(experiment),
        "flag_name": flag_name(queries),
    }


def task_figures(
    task: EvaluationTask,
    test: QueryTable,
    share: dict[str, Any],
    milliseconds: dict[str, tuple[float, float, float]],
) -> dict[str, Any]:
    """The rows of one task; only `never` where nothing is eligible, since all rows are equal."""
    chosen_N = [name == task.name for name in test.tasks]
    table = test.of_tasks([task.name])
    shown = share if table.eligible_N.any() else {NEVER: share[NEVER]}
    rows = {
        name: row_figures(table, share_N[chosen_N], milliseconds[name])
        for name, share_N in shown.items()
    }
    return asdict(task) | {"queries": len(table.keys), "rows": rows}


def flag_name(queries: QueryTable) -> dict[str, Any] | None:
    """Recall@1 of `flag-name` over the names of all parts: the last hop of every chain. Names are
    trained (in other flag styles), so no part is special."""
    names = queries.of_tasks(["flag-name"])
    if not names.keys:
        return None
    direct_N = value_of(names.metric["recall@1"], 0.0 * names.score_N)
    return asdict(mean_over_tasks(names, direct_N)) | {"queries": len(names.keys)}


def gate_settings(experiment: Path) -> dict[str, Any]:
    """The gate's own settings, from the configuration that its run recorded."""
    path = experiment / "gate" / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: fit the gate before building a report.")
    return yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["init_args"]


def read_latency(experiment: Path) -> dict[str, float]:
    """Mean milliseconds of both paths, from the queries measured by the gate's test run."""
    path = experiment / "gate-test" / "latency.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: run `experiments.run test` with the gate's config, which measures "
            "milliseconds live."
        )
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["queries"]
        names = ("direct_ms", "decided_ms", "reasoned_ms", "tokens")
        means = {name: sum(float(row[name]) for row in rows) / len(rows) for name in names}
    except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise ValueError(
            f"{path} holds no live measurement ({type(error).__name__} {error}): delete it and run "
            "`experiments.run test` with the gate's config again."
        ) from None
    return means | {"queries": len(rows)}


def milliseconds_of(name: str, latency: dict[str, float]) -> tuple[float, float, float]:
    """What the direct path takes, what reasoning adds, and what deciding adds in the gated row."""
    direct = latency["direct_ms"]
    deciding = latency["decided_ms"] - direct if name == GATED else 0.0
    return direct, latency["reasoned_ms"] - direct, max(0.0, deciding)


def swap_test(experiment: Path) -> dict[str, float]:
    """Figures of the selector's test run, if there was one."""
    path = experiment / "selection-test" / "summary.json"
    if not path.is_file():
        return {}
    return json.loads(path.read_text(encoding="utf-8"))["metrics"]


def to_tensorboard(folder: Path, report: dict[str, Any], figure: Any) -> None:
    """Figure and tables for TensorBoard, beside the runs."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        writer.add_figure("report/frontier", figure, close=False)
        writer.add_text("report/table", mix_table(report["mix"]))
        for name, row in report["mix"].items():
            writer.add_scalar(f"report/recall@1/{name.replace(' ', '_')}", row["recall@1"]["mean"])
