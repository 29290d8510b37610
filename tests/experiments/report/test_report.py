"""The report: its figures are those of the runs, and every piece of it exists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from experiments.report.__main__ import main
from experiments.report.build import NAMES, build, show_current
from experiments.report.data.query_table import METRICS, read_queries
from experiments.report.data.selection import selection_figures
from experiments.report.policies.decisions import ALWAYS, GATED, NEVER, ORACLE, RANDOM
from tests.fixtures.tiny_experiment import Experiment


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
        *("never", "always", "per-task rule", "random at equal cost", "training-free router"),
        *("supervised gate", "draft, then use or drop", "gated, shuffled within tasks"),
        *("gated", "oracle"),
    )
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
    assert "Where it costs as much as the per-task rule" in text
    assert set(report["picking"]) >= {"whether the draft is right"}
    assert all(f"| {order} " in text for order in report["picking"])
    assert (folder / "report.png").read_bytes()[:4] == b"\x89PNG"
    assert (folder / "report.json").is_symlink()
    assert not (folder / "report.json").readlink().is_absolute(), "the folder may be moved"
    assert report["versions"]["torch"]
    assert report["latency"]["queries"] == 18
    assert set(report["comparisons"]["gated minus per-task rule"]) >= {
        "mean", "low", "high", "minimal_detectable_effect", "left", "right", "queries",
    }  # fmt: skip


def test_a_report_whose_file_is_broken_is_made_again(clip_experiment: Experiment) -> None:
    folder, root = clip_experiment.folder, clip_experiment.root
    assert show_current(folder, root)
    for name in NAMES:
        path = (folder / name).resolve()
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        assert not show_current(folder, root), name
        path.write_bytes(whole)
    assert show_current(folder, root)


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
    with pytest.raises(SystemExit, match=r"error: .*(--data-root|--config own/test)") as raised:
        main([argument.format(tmp_path) for argument in command])
    assert "\n" not in str(raised.value)


def test_decisions_must_cover_every_depth_value(
    clip_experiment: Experiment, tmp_path: Path
) -> None:
    (tmp_path / "depth_values").symlink_to(clip_experiment.folder / "depth_values")
    (tmp_path / "decisions").symlink_to(clip_experiment.folder / "selected")
    with pytest.raises(ValueError, match=r"no decision for query 00000000.*`decisions` again"):
        read_queries(tmp_path)


def test_selection_is_counted_by_draw(clip_experiment: Experiment) -> None:
    found = selection_figures(clip_experiment.folder, num_resamples=50)
    assert found["right"] == 1.0, "the table of facts is always right, and the babble is dropped"
    assert found["drafts"] == 32, "16 questions, two equal draws each"
    assert 0 < found["keep_rate"] < 1


def test_an_experiment_that_selected_nothing_has_a_report(
    clip_experiment: Experiment, tmp_path: Path
) -> None:
    """As that of `pocket/graded.yaml`, which takes the embedder of another experiment."""
    for name in ("rationales", "depth_values", "decisions", "gate", "gate-test"):
        (tmp_path / name).symlink_to((clip_experiment.folder / name).resolve())
    with (
        patch("experiments.report.policies.gate_study.SEEDS", (0, 1)),
        patch("experiments.report.policies.gates.NUM_STEPS", 20),
    ):
        build(tmp_path, clip_experiment.root)
    assert "Nothing was selected" in (tmp_path / "report.md").read_text()
    assert "Nothing was selected" in (tmp_path / "report.html").read_text()
