"""The report: its figures are those of the runs, and every piece of it exists."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from experiments.report.__main__ import main
from experiments.report.build import build
from experiments.report.frontier import area_N, overthinking
from experiments.report.policies import (
    ALWAYS,
    DRAFT,
    GATED,
    NEVER,
    ORACLE,
    RANDOM,
    ROUTER,
    RULE,
    SUPERVISED,
    Policy,
    policies,
)
from experiments.report.records import METRICS, QueryTable, read_queries
from experiments.report.selection import selection_figures
from experiments.report.tables import better_constant, comparisons, row_figures
from tests.tiny_experiment import Experiment


@pytest.fixture(scope="module")
def report(clip_experiment: Experiment) -> dict[str, Any]:
    return json.loads((clip_experiment.folder / "report.json").read_text())


@pytest.fixture(scope="module")
def tested(clip_experiment: Experiment) -> dict[str, float]:
    """Metrics of the gate's own test run, through AdaptiveEmbedder."""
    return json.loads((clip_experiment.folder / "gate-test/summary.json").read_text())["metrics"]


def rows_of(report: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """(queries, figures of the gated row) of every task; ungated tasks have only `never`."""
    tasks = report["tasks"].values()
    return [(task["queries"], task["rows"].get(GATED, task["rows"][NEVER])) for task in tasks]


@pytest.mark.parametrize("metric", ["recall@1", "recall@5", "recall@10", "hit@1", "ndcg_linear@5"])
def test_quality_is_what_the_test_run_found(
    report: dict[str, Any], tested: dict[str, float], metric: str
) -> None:
    means = [row[metric]["mean"] for _, row in rows_of(report)]
    assert sum(means) / len(means) == pytest.approx(tested[f"test/{metric}"], abs=1e-5)


def test_cost_is_what_the_test_run_paid(report: dict[str, Any], tested: dict[str, float]) -> None:
    rows = rows_of(report)
    total = sum(count for count, _ in rows)
    assert total == report["queries"]
    for name, tested_name in (
        ("invocation_all", "invocation_ratio_all"),
        ("reasoning_tokens", "reasoning_tokens"),
    ):
        mean = sum(count * row[name] for count, row in rows) / total
        assert mean == pytest.approx(tested[f"test/{tested_name}"], abs=1e-5)
    gated = report["mix"][GATED]
    assert gated["invocation"] == pytest.approx(tested["test/invocation_ratio"], abs=1e-5)
    assert 0 < gated["invocation"] < 1, "the budget of one half binds, or this shows little"


def test_the_rows_are_in_order_and_cost_what_they_must(report: dict[str, Any]) -> None:
    mix = report["mix"]
    assert tuple(mix) == (
        NEVER, ALWAYS, RULE, RANDOM, ROUTER, SUPERVISED, DRAFT, GATED, ORACLE
    )  # fmt: skip
    assert mix[NEVER]["reasoning_tokens"] == mix[NEVER]["invocation"] == 0
    assert mix[ALWAYS]["invocation"] == 1
    assert mix[RANDOM]["reasoning_tokens"] == pytest.approx(mix[GATED]["reasoning_tokens"])
    assert mix[ORACLE]["reasoning_tokens"] <= mix[ALWAYS]["reasoning_tokens"]
    for row in mix.values():
        for metric in METRICS:
            interval = row[metric]
            assert 0 <= interval["low"] <= interval["mean"] <= interval["high"] <= 1
    assert mix[NEVER]["latency_ms"] < mix[ALWAYS]["latency_ms"]


def test_the_frontier_runs_from_never_to_always(report: dict[str, Any]) -> None:
    points, mix = report["frontiers"]["gated"], report["mix"]
    assert points[0]["recall@1"] == pytest.approx(mix[NEVER]["recall@1"]["mean"])
    assert points[-1]["recall@1"] == pytest.approx(mix[ALWAYS]["recall@1"]["mean"])
    assert points[-1]["tokens"] == pytest.approx(mix[ALWAYS]["reasoning_tokens"])
    tokens = [point["tokens"] for point in points]
    assert tokens == sorted(tokens)


def test_every_piece_of_the_report_exists(
    clip_experiment: Experiment, report: dict[str, Any]
) -> None:
    folder = clip_experiment.folder
    text = (folder / "report.md").read_text()
    for words in ("does reasoning pay?", "| never ", "| oracle ", "report.png", "### flag-name"):
        assert words in text
    assert (folder / "report.png").read_bytes()[:4] == b"\x89PNG"
    assert (folder / "report.json").is_symlink()
    assert not (folder / "report.json").readlink().is_absolute(), "the folder may be moved"
    assert report["versions"]["torch"]
    assert report["latency"]["queries"] == 18
    assert set(report["comparisons"]["gated minus per-task rule"]) >= {
        "mean", "low", "high", "minimal_detectable_effect", "left", "right", "queries",
    }  # fmt: skip


def test_show_prints_the_report(
    clip_experiment: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["show", str(clip_experiment.folder)])
    assert "does reasoning pay?" in capsys.readouterr().out


def test_a_missing_report_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"report\.md is missing: run the pipeline"):
        main(["show", str(tmp_path)])


@pytest.mark.parametrize("command", [["build", "{}"], ["build", "{}", "--data-root", "nowhere"]])
def test_an_experiment_without_runs_is_one_clear_error(tmp_path: Path, command: list[str]) -> None:
    with pytest.raises(SystemExit, match="error: .*utilities") as raised:
        main([argument.format(tmp_path) for argument in command])
    assert "\n" not in str(raised.value)


# ---- a made-up table


def table(parts: str = "test") -> QueryTable:
    """Four eligible queries of two tasks and one that is not: reasoning helps 0 and 2, costs 1."""
    direct = np.array([0.0, 1.0, 0.0, 1.0, 1.0])
    reasoned = np.array([1.0, 0.0, 1.0, 1.0, 1.0])
    return QueryTable(
        keys=tuple("abcde"),
        tasks=("x", "x", "y", "y", "z"),
        parts=(parts,) * 5,
        concepts=("fr", "de", "fr", "it", "de"),
        eligible_N=np.array([True, True, True, True, False]),
        utility_NA=np.array([[-2.0, -1], [-1, -3], [-2, -1], [-1, -1], [-1, -1]]),
        cost_NA=np.array([[0.0, 10]] * 4 + [[0, 0]]),
        metric={name: np.stack([direct, reasoned], axis=1) for name in METRICS},
        depth_N=np.array([1, 0, 1, 0, 0]),
        logit_NA=np.array([[0.0, 2], [0, -2], [0, 1], [0, -1], [0, 5]]),
        lead_N=np.array([0.1, 0.9, 0.2, 0.8, 0.1]),
        confidence_N=np.array([-0.1, -0.9, -0.2, -0.3, np.nan]),
    )


def invoked(policy: Policy) -> list[float]:
    return policy.invocation_N.tolist()


def test_policies_are_what_each_row_says() -> None:
    found = policies(table(), table("calibration"), price=0.0, clip=3.0)
    assert invoked(found[NEVER]) == [0, 0, 0, 0, 0]
    assert invoked(found[ALWAYS]) == [1, 1, 1, 1, 0], "who is not eligible never reasons"
    assert invoked(found[GATED]) == [1, 0, 1, 0, 0]
    assert invoked(found[ORACLE]) == [1, 0, 1, 0, 0]
    assert invoked(found[RULE]) == [0, 0, 1, 1, 0], "task x loses 1 - 2, task y wins 1 + 0"
    assert invoked(found[RANDOM]) == [0.5, 0.5, 0.5, 0.5, 0]
    assert invoked(found[ROUTER]) == [1, 0, 1, 0, 0], "where the lead is small"
    assert invoked(found[DRAFT]) == [1, 1, 1, 1, 0], "every draft is paid for"
    used = found[DRAFT].value(table().metric["recall@1"])
    assert used.tolist() == [1, 1, 1, 1, 1], "and the uncertain ones are dropped"


def test_a_price_changes_the_rule() -> None:
    found = policies(table(), table("gate"), price=0.1, clip=3.0)
    assert invoked(found[RULE]) == [0, 0, 0, 0, 0], "1 nat is not worth 20 tokens"


def test_with_three_depths_each_constant_is_a_row() -> None:
    def deeper(values_NA: np.ndarray) -> np.ndarray:
        return np.concatenate([values_NA, values_NA[:, 1:] + 0.5], axis=1)

    small = table()
    three = replace(
        small,
        utility_NA=deeper(small.utility_NA),
        cost_NA=deeper(small.cost_NA),
        metric={name: deeper(values) for name, values in small.metric.items()},
        logit_NA=deeper(small.logit_NA),
        depths=("direct", "short", "full"),
    )
    found = policies(three, three, price=0.0, clip=3.0)
    assert list(found)[:3] == [NEVER, "always short", ALWAYS]
    assert found[ALWAYS].take_NA[:4].tolist() == [[0, 0, 1]] * 4
    assert found["always short"].take_NA[:4].tolist() == [[0, 1, 0]] * 4
    assert found[RANDOM].cost(three.cost_NA).sum() == pytest.approx(
        found[GATED].cost(three.cost_NA).sum()
    )


def test_figures_of_a_row() -> None:
    policy = Policy.of_share(np.array([1.0, 0, 0.5, 0.5, 0]), 2)
    found = row_figures(table(), policy, np.array([10.0, 110.0]), 1.0)
    assert found["invocation"] == pytest.approx(2 / 4)
    assert found["invocation_all"] == pytest.approx(2 / 5)
    assert found["reasoning_tokens"] == pytest.approx(20 / 5)
    assert found["latency_ms"] == pytest.approx(10 + 100 * 2 / 5 + 1 * 4 / 5)
    # Tasks weigh equally: x has 1 and 1, y has 0.5 and 1, z has 1.
    assert found["recall@1"]["mean"] == pytest.approx((1 + 0.75 + 1) / 3)


def test_comparisons_are_paired_and_leave_out_tasks_that_nobody_reasons_about() -> None:
    found = comparisons(table(), policies(table(), table("gate"), 0.0, 3.0), think=["y"])
    pooled = found["always minus never, think tasks pooled"]
    assert (pooled["queries"], pooled["mean"]) == (2, pytest.approx(0.5))
    mix = found["always minus never"]
    assert (mix["queries"], mix["mean"]) == (4, pytest.approx((0.0 + 0.5) / 2))
    gated = found["gated minus the better of never and always"]
    assert gated["right"] == ALWAYS
    assert gated["mean"] == pytest.approx(1 - 0.75)
    for row in found.values():
        assert row["low"] <= row["mean"] <= row["high"]


def test_the_better_constant_is_found_on_the_same_queries() -> None:
    found = policies(table(), table("gate"), 0.0, 3.0)
    assert better_constant(table(), found) == ALWAYS


def test_the_area_under_a_straight_line_is_its_middle() -> None:
    small = table()
    shares = [0.0, 1.0, 0.5]
    line = [Policy.of_share(np.full(5, share) * small.eligible_N, 2) for share in shares]
    middle = line[2].value(small.metric["recall@1"])
    assert area_N(small, line).tolist() == pytest.approx(middle.tolist())
    assert area_N(small, line[:1]).tolist() == small.metric["recall@1"][:, 0].tolist()


def test_overthinking_is_judged_at_the_budget_that_calibration_likes() -> None:
    """Reasoning helps queries 0 and 2 and costs 1: opening the two is best, on both parts."""
    small = table()
    opened = [np.zeros(5), np.array([1, 0, 1, 0, 0]), np.array([1, 1, 1, 1, 0])]
    along = [Policy.of_depths(depth_N, 2) for depth_N in opened]
    found = overthinking(small, small, along, along)
    assert found["invocation"] == 0.5
    assert found["minus_all"]["mean"] == pytest.approx((0.5 + 0 + 0) / 3)


def test_decisions_must_cover_every_utility(clip_experiment: Experiment, tmp_path: Path) -> None:
    (tmp_path / "utilities").symlink_to(clip_experiment.folder / "utilities")
    (tmp_path / "decisions").symlink_to(clip_experiment.folder / "selected")
    with pytest.raises(ValueError, match=r"no decision for query 00000000.*`decisions` again"):
        read_queries(tmp_path)


def test_selection_is_counted_by_draw(clip_experiment: Experiment) -> None:
    found = selection_figures(clip_experiment.folder, num_resamples=50)
    assert found["right"] == 1.0, "the table of facts is always right, and the babble is dropped"
    assert found["candidates"] == 32, "16 questions, two equal draws each"
    assert 0 < found["keep_rate"] < 1


def test_an_experiment_that_selected_nothing_has_a_report(
    clip_experiment: Experiment, tmp_path: Path
) -> None:
    """As that of `pocket/graded.yaml`, which takes the embedder of another experiment."""
    for name in ("rationales", "utilities", "decisions", "gate", "gate-test"):
        (tmp_path / name).symlink_to((clip_experiment.folder / name).resolve())
    with (
        patch("experiments.report.gate_study.SEEDS", (0, 1)),
        patch("experiments.report.gates.NUM_STEPS", 20),
    ):
        build(tmp_path, str(clip_experiment.root))
    assert "Nothing was selected" in (tmp_path / "report.md").read_text()
    assert "Nothing was selected" in (tmp_path / "report.html").read_text()
