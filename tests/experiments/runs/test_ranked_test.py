"""The ranks of a test, as they are shown and compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.runs.ranked_test import RankedTest, ranked_alike
from mmemb.records.ranked_queries import RankedQueries, RankedQuery
from mmemb.records.schema import to_json
from mmemb.storage.json_files import write_json
from mmemb.storage.run_folder import RunFolder


def ranked(number: int, hit: bool, task: str = "a", candidates: int = 4) -> RankedQuery:
    metrics = {"recall@1": float(hit), "recall@10": 1.0, "ndcg_linear@5": 0.5}
    metrics |= {"chance@1": 1 / candidates, "chance@10": 1.0}
    return RankedQuery(
        key=f"k{number}", task=task, concept=f"c{number}", gallery="g", candidates=candidates,
        right=("x",), rank=1.0 if hit else 2.0, metrics=metrics,
    )  # fmt: skip


def test_tasks_weigh_the_same_and_the_chance_level_stands_beside_the_metric(
    tmp_path: Path,
) -> None:
    rows = [ranked(n, n % 2 == 0) for n in range(6)]
    rows += [ranked(n, True, "b", candidates=2) for n in range(6, 8)]
    write_json(RunFolder(tmp_path).ranks, to_json(RankedQueries(tuple(rows))))
    test = RankedTest.read(tmp_path)
    assert test is not None
    lines = test.table().markdown().splitlines()
    assert lines[0].replace(" ", "") == "|task|queries|Recall@1|chance|Recall@10|NDCG@5|"
    assert lines[2].startswith("| a               | 6       | 50.0 [")
    assert lines[3].startswith("| b               | 2       | 100.0 [no interval: 2 clusters] ")
    assert "| 75.0 [" in lines[4]
    assert "| 37.5 %" in lines[4]


@pytest.mark.parametrize("hit", [True, False])
def test_queries_that_all_hit_or_miss_are_no_certainty(hit: bool) -> None:
    test = RankedTest(Path("one"), tuple(ranked(n, hit) for n in range(32)))
    interval = test.mean("recall@1")
    # The bound at which 32 equal outcomes have a probability of 2.5 %.
    bound = 1 - interval.low if hit else interval.high
    assert (1 - bound) ** 32 == pytest.approx(0.025)
    assert (interval.high if hit else interval.low) == interval.mean == float(hit)


def test_a_run_that_ranked_nothing_has_no_ranks(tmp_path: Path) -> None:
    assert RankedTest.read(tmp_path) is None


def test_tests_of_other_data_are_not_compared() -> None:
    rows = tuple(ranked(n, True) for n in range(3))
    one = RankedTest(Path("one"), rows)
    assert ranked_alike(one, RankedTest(Path("again"), rows))
    for other in (rows[:2], (*rows[:2], ranked(2, True, candidates=5))):
        assert not ranked_alike(one, RankedTest(Path("other"), other))
