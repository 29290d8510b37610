"""Builds a report from the sidecars: `report.{json,md,png,html}`, and links."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, final

import numpy as np

from datamodules.data_roots import read_tasks
from experiments.report.data.pictures import CandidatePictures
from experiments.report.data.query_table import QueryTable, read_queries
from experiments.report.data.ranked_tests import (
    TRAINED,
    missing_tests,
    pipeline_command,
    read_tests,
)
from experiments.report.data.reasoned import ReasonedQuery, read_reasoned
from experiments.report.data.selection import selection_figures
from experiments.report.pages.examples import read_examples
from experiments.report.pages.figure import draw, draw_tests
from experiments.report.pages.found import found_examples
from experiments.report.pages.report_page import PageExamples, report_html, report_markdown
from experiments.report.pages.tables import compared_table, mix_table
from experiments.report.policies.comparisons import (
    comparison,
    comparisons,
    eligible_tasks,
    mean_over_tasks,
    of_eligible_tasks,
    row_figures,
)
from experiments.report.policies.decisions import (
    GATED,
    NEVER,
    RULE,
    SHUFFLED,
    SUPERVISED,
    Policy,
    policies,
)
from experiments.report.policies.first_table import first_table
from experiments.report.policies.frontier import (
    area_of,
    at_cost,
    budgets_of,
    overthinking,
    points_of,
    policies_along,
)
from experiments.report.policies.gate_study import gate_study
from experiments.report.policies.gates import read_splits, supervised_depths
from experiments.report.policies.graded import graded_against_binary
from experiments.report.policies.picking import picking
from experiments.report.policies.swap import embedded_swap, judged_swap
from experiments.runs.folders import is_published
from experiments.runs.origin import made_now, newest_folder
from experiments.runs.ranked_test import RankedTest
from experiments.runs.recorded_config import read_config
from experiments.runs.recorded_data import data_root_of, finished_runs, pair_folders
from experiments.runs.saved_report import read_report
from mmemb.gate.latency import Latency, mean_latency
from mmemb.gate.saved_settings import read_settings
from mmemb.records.pairs import EvaluationTask
from mmemb.records.schema import Schema, read_json, to_json
from mmemb.storage.fingerprints import fingerprint
from mmemb.storage.json_files import write_json
from mmemb.storage.products import Product, lost_product, record_products
from mmemb.storage.provenance import git_state
from mmemb.storage.run_folder import RANKS, ExperimentFolder, RunFolder

LINK = "report"
NAMES = ("report.md", "report.png", "report.json", "report.html")
PRODUCTS = "products.json"
"""Sizes and hashes of a report's files, so that a broken one is made again."""


def build(experiment: Path, data_root: Path | None = None) -> dict[str, Any]:
    """Writes a report of the experiment's newest runs and prints its tables.

    Args:
        experiment: e.g. `runs/pocket`; what it lacks is named in the report.
        data_root: the prepared data; None takes that which the runs recorded.
    """
    root = data_root_of(experiment, data_root)
    tests = read_tests(experiment, root)
    lacks = missing_stages(experiment)
    if not tests and lacks:
        raise FileNotFoundError(
            f"{experiment} holds nothing to report: no test that ranked queries, and no "
            f"{lacks[0]}. This makes a test: {missing_tests(experiment, root, tests)[TRAINED]}"
        )

    has_reasoned = not {"rationales", "depth_values"} & set(lacks)
    reasoned = read_reasoned(experiment, root) if has_reasoned else ()
    report = collect(experiment, root, tests, lacks, reasoned)
    examples = read_page_examples(experiment, root, report, tests, reasoned)

    with newest_folder(experiment, LINK, report, NAMES) as fresh:
        figure = draw_report(fresh / "report.png", report)
        (fresh / "report.md").write_text(report_markdown(report), encoding="utf-8")
        write_json(fresh / "report.json", report)
        html = report_html(report, examples, (fresh / "report.png").read_bytes())
        (fresh / "report.html").write_bytes(html)
        to_tensorboard(fresh, report, figure)
        files = record_products(fresh, [fresh / name for name in NAMES])
        write_json(fresh / PRODUCTS, {"products": files})

    print(f"\n{report_tables(report)}")
    print(f"\n{experiment}/report.md, report.png, report.json, report.html")
    return report


def report_tables(report: Mapping[str, Any]) -> str:
    """Returns the tables that a terminal shows."""
    tables = [compared_table(report["first"])] if report.get("first") else []
    tables += [mix_table(report["mix"])] if report.get("mix") else []
    return "\n\n".join(table.markdown() for table in tables)


def read_page_examples(
    experiment: Path,
    root: Path,
    report: Mapping[str, Any],
    tests: Mapping[str, RankedTest],
    reasoned: Sequence[ReasonedQuery],
) -> PageExamples:
    """Returns the cards of `report.html`: hits and misses, and what reasoning changed."""
    selected = ExperimentFolder(experiment).selected.exists()
    pictures = CandidatePictures.open(root, pair_folders(experiment, root) if selected else ())

    # The last row is what the experiment has come to; one of sidecars names the best alone.
    rows = list(report["first"]["rows"]) if report["first"] else []
    found = found_examples(rows[-1], tests[rows[-1]], root, pictures) if rows else None
    return PageExamples(found, read_examples(reasoned, pictures) if reasoned else None)


def missing_stages(experiment: Path) -> list[str]:
    """Returns the stages that the comparison of policies reads, and that have not run."""
    folder = ExperimentFolder(experiment)
    there = {
        "rationales": folder.rationales,
        "depth_values": folder.depth_values,
        "gate": folder.gate.config,
        "decisions": folder.decisions,
        "gate-test": folder.gate_test.latency,
    }
    return [name for name, path in there.items() if not path.exists()]


def made_of(experiment: Path, data_root: Path) -> str:
    """Returns a hash of what a report is made of: the newest runs and sidecars, data and code."""
    names = ("rationales", "selected", "depth_values", "decisions")
    names += ("gate", "gate-test", "selection-test")
    names += tuple(f"{path.name}/{RANKS}" for path in finished_runs(experiment))

    # An experiment may lack stages: it can take its embedder from another one.
    commit, diff = git_state(Path(__file__).parent)
    inputs = [str(experiment / name) for name in names if (experiment / name).exists()]
    inputs += [f"{data_root}/{name}" for name in ("tasks.json", "queries", "candidates")]
    return fingerprint({"inputs": inputs, "code": [commit, diff]})


def show_current(experiment: Path, data_root: Path) -> bool:
    """Prints the table of the newest report if that is still up to date.

    Returns:
        Whether its inputs have not changed and its files are whole.
    """
    if not (is_published(experiment / LINK, NAMES) and _is_whole(experiment / LINK)):
        return False

    # Whole files are not enough: they may describe runs that are no longer the newest.
    report = read_report(experiment / "report.json")
    if report["made_of"] != made_of(experiment, data_root):
        return False

    print(f"\n{report_tables(report)}\n")
    print(f"{experiment}/{', '.join(NAMES)}: nothing has changed")
    return True


@final
class _ProductsJson(Schema):
    """The files of a report."""

    products: tuple[Product, ...]


def _is_whole(folder: Path) -> bool:
    path = folder / PRODUCTS
    if not path.is_file():
        return False
    return lost_product(folder.resolve(), read_json(path, _ProductsJson).products, "") is None


def collect(
    experiment: Path,
    root: Path,
    tests: Mapping[str, RankedTest],
    lacks: Sequence[str],
    reasoned: Sequence[ReasonedQuery],
) -> dict[str, Any]:
    """Returns every figure of a report, as JSON data."""
    first = first_table(tests)
    report = {
        "experiment": experiment.name,
        "data_root": str(root),
        "made_of": made_of(experiment, root),
        **made_now(),
        "first": first,
        "commands": missing_tests(experiment, root, first["rows"] if first else ()),
        "selection": selection_figures(experiment),
        "swap_test": judged_swap(experiment),
    }
    if not lacks:
        return report | policy_figures(experiment, root, reasoned)

    # What is not there is named, with the command that makes it.
    missing = {"stages": list(lacks), "command": pipeline_command(experiment, root)}
    return report | {"mix": {}, "missing": missing}


def policy_figures(
    experiment: Path, root: Path, reasoned: Sequence[ReasonedQuery]
) -> dict[str, Any]:
    """Returns the figures of a gate: policies, comparisons, what it costs and what it can see."""
    queries = read_queries(experiment)
    tasks = read_tasks(root)
    gate = gate_settings(experiment)
    test = queries.of_splits("test")
    tuning = queries.of_splits("gate", "calibration")

    splits = read_splits(experiment, root)
    supervised_N = supervised_depths(splits, gate)

    # The rule, thresholds and router come from `tuning`: nothing is tuned on the test queries.
    rows = policies(test, tuning, gate["token_cost"], gate["clip"], {SUPERVISED: supervised_N})

    latency, num_timed = mean_latency(ExperimentFolder(experiment).gate_test.latency)
    thinking = [task.name for task in tasks if task.think]
    thinking_N = test.in_tasks(thinking) & test.eligible_N
    right = {q.query.key: q.names_target for q in reasoned}

    # Tasks without an eligible query have the same value in every row, and would hide differences.
    chosen_N = of_eligible_tasks(test)
    mixed = test.select(chosen_N)
    calibration = tuning.of_splits("calibration").of_tasks(eligible_tasks(test))

    graded = graded_against_binary(splits, gate, mixed, chosen_N) if len(test.depths) > 2 else None

    return {
        "queries": len(test.keys),
        "eligible_queries": int(test.eligible_N.sum()),
        "told_queries": sum(bool(q.query.side.media) for q in reasoned),
        "concepts": len(set(test.concepts)),
        "depths": list(test.depths),
        "latency": to_json(latency) | {"queries": num_timed},
        "mix": {
            name: figures(name, mixed, policy.select(chosen_N), latency)
            for name, policy in rows.items()
        },
        "comparisons": comparisons(test, rows, thinking),
        **frontier_figures(experiment, mixed, calibration, graded, rows[RULE].select(chosen_N)),
        "tasks": {
            task.name: task_figures(task, test, rows, latency)
            for task in tasks
            if task.name in test.tasks
        },
        "gate_study": gate_study(splits, gate, test, rows),
        "picking": picking(test.select(thinking_N), right),
        "swap_cosines": embedded_swap(experiment),
        "flag_name": flag_name(queries),
    }


def frontier_figures(
    experiment: Path,
    test: QueryTable,
    calibration: QueryTable,
    graded: dict[str, Any] | None,
    rule: Policy,
) -> dict[str, Any]:
    """Returns quality against cost as the gate's threshold moves, and what that curve shows.

    Args:
        experiment: holds the fitted gate.
        test: queries of split `test`, of tasks with eligible ones.
        calibration: the same of split `calibration`.
        graded: what a gate of three depths or more gains over a binary one, if it has so many.
        rule: what the per-task rule does about `test`.

    Returns:
        The curves, their area, overthinking, and the distance from the per-task rule at its cost.
    """
    gate_calibration = read_settings(experiment / "gate/adaptive").calibration.record()
    depths = list(range(len(test.depths)))
    on_test, on_calibration = (
        policies_along(table, table.logit_NA, gate_calibration, depths)
        for table in (test, calibration)
    )

    frontiers = {"gated": points_of(test, on_test, budgets_of(gate_calibration))}
    if graded is not None:
        frontiers["binary gate"] = graded["binary"]["points"]

    # The frontier is read at the cost of the rule, or the dearer of the two would be ahead by
    # its tokens.
    rule_cost = float(rule.cost(test.cost_NA).mean())
    return {
        "frontiers": frontiers,
        "frontier_area": area_of(test, on_test),
        "graded": graded,
        "overthinking": overthinking(test, calibration, on_test, on_calibration),
        "at_rules_cost": comparison(test, at_cost(test, on_test, rule_cost), rule),
    }


def figures(name: str, table: QueryTable, policy: Policy, latency: Latency) -> dict[str, Any]:
    """Returns one row of a table; only the gated ones pay for decisions."""
    decides = name in (GATED, SHUFFLED)

    # Both are measured live, so noise can put a decided query below a direct one.
    deciding = max(0.0, latency.decided_ms - latency.depth_ms[0]) if decides else 0.0
    return row_figures(table, policy, np.array(latency.depth_ms), deciding)


def task_figures(
    task: EvaluationTask, test: QueryTable, rows: dict[str, Policy], latency: Latency
) -> dict[str, Any]:
    """Returns the rows of one task; without eligible queries all are equal, so only `never`."""
    chosen_N = test.in_tasks({task.name})
    table = test.select(chosen_N)
    if not table.eligible_N.any():
        rows = {NEVER: rows[NEVER]}

    figures_of_rows = {
        name: figures(name, table, row.select(chosen_N), latency) for name, row in rows.items()
    }
    return to_json(task) | {"queries": len(table.keys), "rows": figures_of_rows}


def flag_name(queries: QueryTable) -> dict[str, Any] | None:
    """Returns Recall@1 of `flag-name` over the names of all splits: the last hop of every chain."""
    # Names are trained (in other flag styles), so no split is special.
    names = queries.of_tasks(["flag-name"])
    if not names.keys:
        return None

    direct_N = names.metric["recall@1"][:, 0]
    return asdict(mean_over_tasks(names, direct_N)) | {"queries": len(names.keys)}


def gate_settings(experiment: Path) -> dict[str, Any]:
    """Returns the gate's settings, from the configuration that its run recorded."""
    gate = ExperimentFolder(experiment).gate.path
    if not RunFolder(gate).config.is_file():
        raise FileNotFoundError(
            f"{RunFolder(gate).config} is missing: fit the gate before building a report."
        )
    return read_config(gate)["model"]["init_args"]


def draw_report(path: Path, report: Mapping[str, Any]) -> Any:
    """Writes the figure: quality against cost, or without a gate the rows of the first table."""
    name = report["experiment"]
    if report["mix"]:
        title = f"{name}: quality against cost, split test"
        return draw(path, report["frontiers"], report["mix"], title)
    return draw_tests(path, report["first"], f"{name}: split test")


def to_tensorboard(folder: Path, report: dict[str, Any], figure: Any) -> None:
    """Writes figure and tables for TensorBoard, beside the runs."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        writer.add_figure("report/frontier", figure, close=False)
        writer.add_text("report/table", report_tables(report))
        for name, row in report["mix"].items():
            writer.add_scalar(f"report/recall@1/{name.replace(' ', '_')}", row["recall@1"]["mean"])
