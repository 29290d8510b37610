"""Reports of score files: comparisons, tables, promises; published numbers recompute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.report.__main__ import main
from experiments.scoring.compare import compare
from experiments.scoring.published import table
from experiments.scoring.submission import submission
from experiments.scoring.verify import verify
from mmemb.benchmarks.headline import complete_groups, headline_text
from mmemb.benchmarks.mmeb_v2 import COUNTS, REVISIONS, TASKS, groups_of, task_named, tasks_of
from mmemb.benchmarks.score_files import (
    METRICS,
    group_means,
    read_scores,
    read_values,
    write_scores,
)
from mmemb.benchmarks.task_scores import TaskScores
from mmemb.records.inputs import Side
from mmemb.records.pairs import Query

PUBLISHED = {
    "I-CLS": (
        [80.80, 72.90, 56.30, 85.00, 71.00, 35.90, 47.40, 89.30, 65.20, 25.20], 62.9,
    ),
    "I-QA": ([51.50, 43.60, 90.10, 58.80, 47.40, 52.90, 38.20, 43.30, 64.90, 72.20], 56.3),
    "I-RET": (
        [82.70, 57.50, 74.50, 78.20, 75.30, 71.40, 68.60, 90.60, 19.50, 66.90, 64.30, 84.10], 69.5,
    ),
    "I-VG": ([67.10, 87.10, 85.80, 69.20], 77.3),
    "V-CLS": ([38.00, 42.80, 40.90, 60.00, 14.78], 39.3),
    "V-QA": ([33.70, 30.70, 20.92, 34.00, 52.30], 34.3),
    "V-RET": ([30.38, 28.30, 48.06, 26.46, 10.63], 28.8),
    "V-MRET": ([49.40, 20.22, 40.83], 36.8),
    "ViDoRe-V1": (
        [80.58, 44.85, 83.69, 89.21, 43.82, 60.82, 88.53, 86.51, 85.01, 92.17], 75.5,
    ),
    "ViDoRe-V2": ([45.56, 44.27, 43.00, 46.62], 44.9),
    "VisRAG": ([76.87, 84.41, 71.79, 91.50, 85.65, 66.05], 79.4),
    "VisDoc-OOD": ([21.94, 80.18, 11.89, 43.71], 39.4),
}  # fmt: skip
"""VLM2Vec-V2.0 (v2.0.0), task by task in the order of the registry, and the published means."""


def published_scores() -> dict[str, float]:
    values = [value for scores, _ in PUBLISHED.values() for value in scores]
    ordered = [t.name for group in PUBLISHED for t in TASKS if t.meta_task == group]
    return dict(zip(ordered, values, strict=True))


def test_published_group_means_recompute_from_published_scores() -> None:
    means = group_means(published_scores(), groups_of())
    for group, (_, mean) in PUBLISHED.items():
        assert means[group] == pytest.approx(mean, abs=0.051), group
    assert means["image"] == pytest.approx(64.85, abs=0.01)
    assert means["video"] == pytest.approx(34.58, abs=0.01)
    assert means["visdoc"] == pytest.approx(65.36, abs=0.01)
    assert means["all"] == pytest.approx(58.02, abs=0.01), "the plain mean over 78 tasks"


def test_the_registry_is_the_benchmark() -> None:
    assert {m: sum(t.modality == m for t in TASKS) for m in COUNTS} == dict(COUNTS)
    assert len({task.name for task in TASKS}) == 78
    assert {task.name for task in TASKS if task.graded} == {
        "ViDoRe_esg_reports_human_labeled_v2", "ViDoSeek-doc", "MMLongBench-doc",
    }  # fmt: skip
    assert sum(task.num_queries for task in TASKS if task.modality == "image") == 36_000
    assert all((task.metric == "ndcg_linear@5") == (task.modality == "visdoc") for task in TASKS)
    groups = groups_of()
    assert len(groups["image-IND"]) == 20
    assert len(groups["image-OOD"]) == 16
    old = tasks_of(REVISIONS[0])
    assert task_named("ViDoSeek-page", old).source == "VLM2Vec/ViDoSeek-page"
    assert task_named("ViDoSeek-page").source.endswith("-fixed")
    with pytest.raises(ValueError, match="no task 'VOC2012'"):
        task_named("VOC2012")
    with pytest.raises(ValueError, match="revision"):
        tasks_of("2024")


def write_model(
    folder: Path, accuracy: dict[str, float], seed: int = 0, num: int = 200, **changed: Any
) -> str:
    """Score files of a model that is right on a share of the queries of each task."""
    random = np.random.default_rng(seed)
    for name, share in accuracy.items():
        values = tuple((random.random(num) < share).astype(float).tolist())
        keys = tuple(f"{n:08d}" for n in range(num))
        metric = task_named(name).metric
        means = {m: float(np.mean(values)) for m in METRICS}
        found = TaskScores(
            task=name, metric=metric, means=means, keys=keys, values=values, clusters=keys,
            ties=0, pessimistic=0.0, optimistic=1.0, predictions=((),) * num,
        )  # fmt: skip
        queries = [Query(k, name, "test", k, k, Side("?"), {"a": 1.0}) for k in keys]
        provenance = {"run": folder.name, "revision": changed.get("revision", "2025-11-03")}
        write_scores(folder, found, queries, provenance, partial=changed.get("partial", ""))
    return str(folder)


VIDEO = {task.name: 0.5 for task in TASKS if task.modality == "video"}


def test_a_better_model_is_separable_and_an_equal_one_is_not(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", VIDEO)
    equal = write_model(tmp_path / "equal", VIDEO, seed=1)
    better = write_model(tmp_path / "better", {n: 0.7 for n in VIDEO}, seed=2)
    text = compare([base, equal, better])
    lines = [line for line in text.splitlines() if line.startswith("| *video*")]
    assert lines[0].rstrip(" |").endswith("no")
    assert lines[1].rstrip(" |").endswith("yes")
    assert "*all*" not in text, "there are 18 of 78 tasks"
    shown = table([base, better], form="latex")
    assert r"\textbf" in shown.splitlines()[-3]
    assert r"\textbf" not in shown.splitlines()[-4]
    assert r"\textbf" not in table([base, equal], form="latex")
    assert table([base], form="csv").splitlines()[0] == "model,V-CLS,V-QA,V-RET,V-MRET,video"


def test_seeds_are_averaged(tmp_path: Path) -> None:
    folders = [write_model(tmp_path / str(n), VIDEO, seed=n) for n in range(3)]
    shown = table([f"ours={','.join(folders)}"])
    assert shown.splitlines()[2].startswith("| ours ")
    one = table([f"ours={folders[0]}"])
    widths = [_width(text.splitlines()[2].split("|")[-2]) for text in (shown, one)]
    assert widths[0] < widths[1]


def _width(cell: str) -> float:
    low, high = cell.split("[")[1].rstrip("] ").split(",")
    return float(high) - float(low)


def test_published_files_have_no_values_by_query(tmp_path: Path) -> None:
    ours = write_model(tmp_path / "ours", VIDEO)
    theirs = tmp_path / "published/theirs/video"
    theirs.mkdir(parents=True)
    for name in VIDEO:
        scores = dict.fromkeys(METRICS, 0.9) | {"num_pred": 200, "num_data": 200}
        (theirs / f"{name}_score.json").write_text(json.dumps(scores, indent=4))
    shown = table([ours], tmp_path / "published")
    assert "| theirs " in shown
    assert "| 90.0 " in shown
    assert "**" not in shown, "nobody can tell whether the lead is chance"


def test_other_revisions_and_modes_are_not_mixed(tmp_path: Path) -> None:
    new = write_model(tmp_path / "new", VIDEO)
    old = write_model(tmp_path / "old", VIDEO, revision="2025-06-03")
    with pytest.raises(ValueError, match="data revisions differ"):
        compare([new, old])
    mixed = tmp_path / "mixed"
    write_model(mixed / "a", {"MSVD": 0.5})
    write_model(mixed / "b", {"VATEX": 0.5}, revision="2025-06-03")
    with pytest.raises(ValueError, match="different data revisions"):
        headline_text(read_scores(mixed))
    with pytest.raises(ValueError, match="two or more"):
        compare([new])
    write_model(mixed / "c", {"MSVD": 0.5})
    with pytest.raises(ValueError, match="two score files of MSVD"):
        read_scores(mixed)


def test_grades_in_two_modes_are_not_mixed(tmp_path: Path) -> None:
    graded = {"ViDoSeek-doc": 0.5, "VisRAG_ChartQA": 0.5}
    ours = write_model(tmp_path / "ours", graded)
    theirs = write_model(tmp_path / "theirs", graded)
    for path in Path(theirs).glob("*_score.json"):
        path.write_text(path.read_text().replace('"correct"', '"reference"'))
    with pytest.raises(ValueError, match="modes in graded tasks differ"):
        compare([ours, theirs])


def test_promises_are_kept_or_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = write_model(tmp_path / "scores", {"MSVD": 0.5, "VATEX": 0.5})
    expected = tmp_path / "expected.json"
    promised = {"data_revision": "2025-11-03", "tolerance": 10}
    expected.write_text(json.dumps(promised | {"scores": {"MSVD": 50, "VATEX": 50}}))
    assert verify(scores, expected)[1]
    expected.write_text(json.dumps(promised | {"scores": {"MSVD": 50, "K700": 40}}))
    text, good = verify(scores, expected)
    assert not good
    assert "missing" in text
    assert "1 of 2 inside" in text
    strict = {"score": 50, "tolerance": 0.01}
    expected.write_text(json.dumps(promised | {"scores": {"MSVD": strict, "VATEX": 90}}))
    with pytest.raises(SystemExit):
        main(["verify", scores, "--expected", str(expected)])
    assert "OUTSIDE" in capsys.readouterr().out
    expected.write_text(json.dumps(promised | {"data_revision": "2025-06-03", "scores": {"A": 1}}))
    with pytest.raises(ValueError, match="prepare the data of that revision"):
        verify(scores, expected)
    expected.write_text(json.dumps({"score": {}}))
    with pytest.raises(ValueError, match="unknown field `score`"):
        verify(scores, expected)


def test_the_leaderboards_file_needs_every_task_whole(tmp_path: Path) -> None:
    every = {task.name: 0.5 for task in TASKS}
    whole = read_scores(Path(write_model(tmp_path / "whole", every, num=4)))
    modality_of = {task.name: task.modality for task in TASKS}
    data = submission(whole, modality_of, {"model_name": "ours"})
    assert {name: len(rows) for name, rows in data["metrics"].items()} == dict(COUNTS)
    assert set(data["metrics"]["video"]["MSVD"]) == {*METRICS, "num_pred", "num_data"}
    assert "all" in complete_groups(whole)
    write_model(tmp_path / "whole", {"MSVD": 0.5}, num=4, partial="1 skipped")
    partial = read_scores(tmp_path / "whole")
    with pytest.raises(ValueError, match="partial: MSVD"):
        submission(partial, modality_of, {})
    assert "all" not in complete_groups(partial)


def test_values_of_a_task_are_there_once(tmp_path: Path) -> None:
    scores = tmp_path / "scores"
    write_model(scores / "a", {"MSVD": 0.5}, num=4)
    (scores / "b").mkdir()
    (scores / "a/MSVD_values.json").rename(scores / "b/MSVD_values.json")
    assert len(read_values(scores)["MSVD"].values) == 4
    write_model(scores / "a", {"MSVD": 0.9}, num=4)
    with pytest.raises(ValueError, match="two value files of MSVD"):
        read_values(scores)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("MSVD_score.json", "{", "MSVD_score.json"),
        ("MSVD_score.json", "{}", "required field `hit@1`"),
        ("MSVD_score.json", '{"hit@1": NaN, "ndcg_linear@5": 0}', "NaN is no number"),
        ("MSVD_score.json", '{"hit@1": 63.2, "ndcg_linear@5": 1}', "<= 1.0 - at `$.hit@1`"),
        ("MSVD_values.json", "{}", "MSVD_values.json is broken"),
        (
            "MSVD_values.json",
            '{"metric": "hit@1", "keys": ["a", "a"], "clusters": ["a", "b"], "values": [1, 0]}',
            "2 keys (1 distinct)",
        ),
        (
            "MSVD_values.json",
            '{"metric": "hit@1", "keys": ["a"], "clusters": ["a"], "values": [NaN]}',
            "NaN is no number",
        ),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, content: str, said: str) -> None:
    scores = write_model(tmp_path / "scores", {"MSVD": 0.5})
    (tmp_path / "scores" / name).write_text(content)
    with pytest.raises(SystemExit) as caught:
        main(["compare", scores, scores])
    assert said in str(caught.value)
    with pytest.raises(SystemExit, match="names no folder"):
        main(["compare", "A=", "B="])


def test_broken_promises_are_named(tmp_path: Path) -> None:
    scores = write_model(tmp_path / "scores", {"MSVD": 0.5})
    expected = tmp_path / "expected.json"
    for entry in ({"tolerance": 1}, "many", None):
        expected.write_text(json.dumps({"scores": {"MSVD": entry}}))
        with pytest.raises(ValueError, match=r"at `\$\.scores\['MSVD'\]`"):
            verify(scores, expected)
