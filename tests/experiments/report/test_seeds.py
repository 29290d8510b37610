"""Means over trainings: of a run with itself, and with one whose gate never thinks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from experiments.pipeline import per_seed, read_pipeline
from experiments.report.__main__ import main
from experiments.report.data.query_table import METRICS
from experiments.report.policies.comparisons import compared, of_eligible_tasks
from experiments.report.policies.decisions import ALWAYS, GATED, NEVER, RULE
from experiments.report.policies.seeds import read_seed_run, row_of, seed_means
from mmemb.storage.shard_index import ShardIndex
from mmemb.storage.shard_writer import finish_manifest
from tests.experiments.pipelines.test_pipeline_file import write_pipeline
from tests.experiments.report.test_report_policies import table
from tests.fixtures.reports import rewrite
from tests.fixtures.tiny_experiment import POCKET
from tests.fixtures.tiny_sidecars import record_origins, write_tiny_depth_values


@pytest.fixture(scope="module")
def runs(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs: reasoning lifts think queries; the first gate always thinks, the second never."""
    folder = tmp_path_factory.mktemp("seeds")
    return [write_run(folder / name, tiny_root, depth) for name, depth in (("a", 1), ("b", 0))]


def write_run(folder: Path, root: Path, depth: int) -> Path:
    write_tiny_depth_values(root, folder / "depth_values")
    write_tiny_depth_values(root, folder / "decisions")

    def decide(_: Any, data: dict[str, Any]) -> dict[str, Any]:
        return {"depth": depth, "logits": [0.0, float(depth)]}

    def measure(_: Any, data: dict[str, Any]) -> dict[str, Any]:
        known = [dict.fromkeys(METRICS, row["recall@1"]) for row in data["metrics"]]
        return data | {"metrics": known}

    rewrite(folder / "decisions", decide)
    rewrite(folder / "depth_values", measure)
    record_origins(folder / "decisions", root / "queries", folder / "depth_values")
    (folder / "gate").mkdir()
    settings = {"model": {"init_args": {"token_cost": 0.0, "clip": 3.0}}}
    (folder / "gate/config.yaml").write_text(yaml.safe_dump(settings))
    return folder


def test_runs_are_averaged_first(runs: list[Path], tiny_root: Path) -> None:
    text, data = seed_means(runs, tiny_root)
    rows = data["rows"]
    assert rows[NEVER]["mean"] < rows[ALWAYS]["mean"]
    assert rows[GATED]["mean"] == pytest.approx((rows[NEVER]["mean"] + rows[ALWAYS]["mean"]) / 2)
    assert rows[NEVER]["seed_sd"] == 0, "the runs differ in their decisions alone"
    assert rows[GATED]["seed_sd"] > 0
    assert rows[GATED]["invocation"] == 0.5
    minus = data["comparisons"]["gated minus the better of never and always"]
    assert minus["right"] == ALWAYS
    assert minus["of_runs"][0] == 0
    assert minus["mean"] == pytest.approx(minus["of_runs"][1] / 2)
    assert "# 2 trainings" in text


def test_a_mean_of_two_equal_runs_is_the_run_itself(runs: list[Path]) -> None:
    one = read_seed_run(runs[0])
    chosen_N = of_eligible_tasks(one.test)
    assert row_of(RULE, [one, one], chosen_N)["seed_sd"] == 0
    assert row_of(RULE, [one, one], chosen_N)["mean"] == row_of(RULE, [one], chosen_N)["mean"]


def test_comparisons_without_queries_are_left_out() -> None:
    made_up = table()
    runs = [dict.fromkeys((NEVER, ALWAYS, GATED), np.zeros(5))] * 2
    found = compared(made_up, runs, [])
    assert "always minus never" in found
    assert not [name for name in found if "mixed" in name or "rule" in name or "think" in name]


def test_a_pooled_mean_of_a_run_is_pooled_too() -> None:
    made_up = table()
    always = np.array([1.0, 1.0, 0.0, 1.0, 1.0])
    runs = [{NEVER: np.zeros(5), ALWAYS: share * always} for share in (1.0, 0.5)]
    found = compared(made_up, runs, ["x", "y"])["always minus never, think tasks pooled"]
    assert found["of_runs"] == pytest.approx([3 / 4, 3 / 8])
    assert found["mean"] == pytest.approx(np.mean(found["of_runs"]))


def test_the_command_writes_what_it_prints(
    runs: list[Path], tiny_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["seeds", *map(str, runs), "--data-root", str(tiny_root)])
    assert (runs[0] / "seeds.md").read_text() in capsys.readouterr().out
    assert json.loads((runs[0] / "seeds.json").read_text())["runs"] == ["a", "b"]


def test_one_run_twice_is_no_second_seed(runs: list[Path]) -> None:
    for given in ([runs[0]], [runs[0], runs[0]]):
        with pytest.raises(SystemExit, match="give two different runs or more"):
            main(["seeds", *map(str, given)])


def test_runs_about_other_queries_are_refused(
    runs: list[Path], tiny_root: Path, tmp_path: Path
) -> None:
    other = write_run(tmp_path / "c", tiny_root, 1)
    for name in ("depth_values", "decisions"):
        source = ShardIndex.open(other / name)
        finish_manifest(other / name, source.manifest.fingerprint, source.shard_names[:1])
    with pytest.raises(ValueError, match="c and .*a are about different queries"):
        seed_means([runs[0], other], tiny_root)


def test_runs_about_data_that_were_prepared_again_are_refused(
    runs: list[Path], tiny_root: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_root / "queries", tmp_path / "queries")
    rewrite(tmp_path / "queries", lambda _, data: data | {"text": "edited"})
    with pytest.raises(ValueError, match=r"depth_values/.* was not made from .*queries/"):
        seed_means(runs, tmp_path)


# ---- the pipeline file


def test_every_seed_is_a_pipeline_of_its_own() -> None:
    pipeline = read_pipeline(POCKET / "seeds.yaml")
    found = per_seed(pipeline, 2)
    assert [one.experiment for one in found] == ["pocket_seed0", "pocket_seed1"]
    assert "--data.seed=1" in found[1].stages[0].arguments
    assert not [a for one in found for stage in one.stages for a in stage.arguments if "{" in a]
    assert len(per_seed(pipeline, None)) == 3
    assert per_seed(read_pipeline(POCKET / "pipeline.yaml"), 2) == [
        read_pipeline(POCKET / "pipeline.yaml")
    ], "a file without seeds has none to count"


@pytest.mark.parametrize(
    ("changed", "num", "words"),
    [
        ({"seeds": [1, 1], "experiment": "e{seed}"}, None, "each once"),
        ({"seeds": [0, 1], "experiment": "e{seed}"}, 0, "at least one"),
        ({"seeds": [0, 1]}, None, "needs {seed} in its name"),
    ],
)
def test_seeds_that_would_lie_are_refused(
    tmp_path: Path, changed: dict[str, Any], num: int | None, words: str
) -> None:
    pipeline = read_pipeline(write_pipeline(tmp_path / "p.yaml", **changed))
    with pytest.raises(ValueError, match=words):
        per_seed(pipeline, num)
