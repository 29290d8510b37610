"""Expected metrics against every order of the equals, the public scorer, and sums over ranks."""

from __future__ import annotations

from itertools import groupby, permutations, product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mmemb.retrieval.ranking import pad_rows, rank_scores
from mmemb.retrieval.ranking_metrics import expected_metrics, metrics_by_query, score_prediction
from mmemb.retrieval.running_means import MeanSums
from tests.fixtures.ranks import run_ranks


def _every_order(scores: list[int]) -> list[list[int]]:
    ranked = sorted(range(len(scores)), key=lambda i: -scores[i])
    groups = [list(group) for _, group in groupby(ranked, key=lambda i: scores[i])]
    return [sum(map(list, order), []) for order in product(*map(permutations, groups))]


@given(
    scores=st.lists(st.integers(0, 2), min_size=2, max_size=6),
    grades=st.dictionaries(st.integers(0, 5), st.integers(1, 3), min_size=1, max_size=4),
)
@settings(max_examples=60, deadline=None)
def test_expected_values_are_means_over_every_order(
    scores: list[int], grades: dict[int, int]
) -> None:
    grades = {name: grade for name, grade in grades.items() if name < len(scores)}
    assume(grades)
    orders = [
        score_prediction(order, list(grades), list(grades.values()), cutoffs=(1, 2, 5))
        for order in _every_order(scores)
    ]
    ranks = rank_scores(torch.tensor([scores]).double(), pad_rows([list(grades)]))
    (found,) = metrics_by_query(ranks, [list(grades.values())], (1, 2, 5))
    assert set(found) == set(orders[0])
    for name, value in found.items():
        expected = float(np.mean([order[name] for order in orders]))
        assert value == pytest.approx(expected, abs=1e-9), name


def test_many_queries_equal_one_by_one() -> None:
    score = torch.randint(0, 5, (8, 20), generator=torch.Generator().manual_seed(0)).double()
    positive = [[1], [2, 3], [4, 5, 6], [7], [8, 9], [0], [], [11, 12, 13, 14]]
    ranks = rank_scores(score, pad_rows(positive))
    table = expected_metrics(ranks)
    for row, rank in enumerate(ranks):
        (single,) = metrics_by_query(rank, [[1.0] * len(positive[row])])
        for name, value in single.items():
            assert table[name][row].item() == pytest.approx(value, abs=1e-12)
    assert metrics_by_query(ranks, [[1.0] * len(row) for row in positive])[2] == {
        name: values[2].item() for name, values in table.items()
    }
    assert all(values[6] == 0 for values in table.values())  # nothing is right


def test_constant_scores_earn_chance_not_everything() -> None:
    ranks = rank_scores(torch.zeros(1, 1000).double(), pad_rows([[0]]))
    (found,) = metrics_by_query(ranks, [[1.0]])
    assert found["hit@1"] == pytest.approx(1 / 1000)
    assert found["recall@10"] == pytest.approx(10 / 1000)
    assert found["mrr@10"] == pytest.approx(sum(1 / i for i in range(1, 11)) / 1000)


def test_many_right_ones_among_many_equals() -> None:
    ranks = rank_scores(torch.zeros(1, 100_000).double(), pad_rows([list(range(400))]))
    (found,) = metrics_by_query(ranks, [[1.0] * 400])
    assert found["hit@10"] == pytest.approx(1 - (1 - 400 / 100_000) ** 10, rel=1e-3)
    assert found["precision@10"] == pytest.approx(400 / 100_000)


NAMES = ("hit", "ndcg_linear", "ndcg_exponential", "precision", "recall", "f1", "map", "mrr")


def test_score_prediction_by_hand() -> None:
    found = score_prediction(["c", "a", "d", "b"], ["a", "b", "x"], [3, 1, 2], cutoffs=(1, 4))
    assert list(found) == [f"{name}@{k}" for k in (1, 4) for name in NAMES]
    assert all(found[f"{name}@1"] == 0 for name in NAMES)
    log = np.log2
    assert found["hit@4"] == 1
    assert found["precision@4"] == 0.5
    assert found["recall@4"] == pytest.approx(2 / 3)  # x was not predicted: a miss
    assert found["f1@4"] == pytest.approx(4 / 7)
    assert found["map@4"] == pytest.approx((1 / 2 + 2 / 4) / 3)
    assert found["mrr@4"] == 0.5
    ideal = 3 + 2 / log(3) + 1 / 2
    assert found["ndcg_linear@4"] == pytest.approx((3 / log(3) + 1 / log(5)) / ideal)
    ideal = 7 + 3 / log(3) + 1 / 2
    assert found["ndcg_exponential@4"] == pytest.approx((7 / log(3) + 1 / log(5)) / ideal)


@given(
    prediction=st.permutations(range(12)),
    labels=st.sets(st.integers(0, 14), min_size=1, max_size=5),
)
@settings(max_examples=50, deadline=None)
def test_modes_agree_without_repeats_and_unequal_grades(
    prediction: list[int], labels: set[int]
) -> None:
    for grades in (None, [1] * len(labels)):
        correct = score_prediction(prediction, sorted(labels), grades)
        assert correct == score_prediction(prediction, sorted(labels), grades, mode="reference")
    assert score_prediction(prediction, sorted(labels)) == correct
    if len(labels) == 1:  # identities of MMEB-V2's published files
        assert correct["f1@5"] == pytest.approx(correct["hit@5"] / 3)
        assert correct["map@10"] == pytest.approx(correct["mrr@10"])
        assert correct["ndcg_linear@1"] == correct["ndcg_exponential@1"] == correct["hit@1"]


def test_reference_shuffles_grades_through_a_set() -> None:
    labels, grades = [7, 8], [3, 2]
    assert list(set(labels)) == [8, 7]  # modulo 8: what CPython does
    arguments: dict[str, Any] = {"prediction": [7, 0], "labels": labels, "grades": grades}
    assert score_prediction(**arguments)["ndcg_linear@1"] == 1
    assert score_prediction(**arguments, mode="reference")["ndcg_linear@1"] == pytest.approx(2 / 3)


def test_reference_refuses_unequal_grades_whose_order_is_not_fixed() -> None:
    for labels in (["p7", "p8"], ["7", "8"], [7, "8"], [-1, 7]):
        with pytest.raises(ValueError, match="Score in mode 'correct'"):
            score_prediction([7, 0], labels, [3, 2], mode="reference")
        assert score_prediction(labels, labels, [3, 2])["ndcg_linear@5"] == 1
        equal = score_prediction(labels, labels, [2, 2], mode="reference")
        assert equal == pytest.approx(score_prediction(labels, labels))


@pytest.mark.parametrize("grade", [0, -1, float("nan"), float("inf"), 1001, 10**400, "2", True])
@pytest.mark.parametrize("mode", ["correct", "reference"])
def test_a_grade_is_a_number_above_0(grade: Any, mode: Any) -> None:
    with pytest.raises(ValueError, match=r"grade of 'b' is .*: expected a number above 0"):
        score_prediction(["a"], ["a", "b"], [1, grade], mode=mode)


@pytest.mark.parametrize("grade", [np.int64(2), np.float32(2), 1000])
def test_a_grade_may_come_from_an_array_and_leaves_every_metric_finite(grade: Any) -> None:
    found = score_prediction(["a", "c"], ["a", "b"], [grade, grade])
    assert all(np.isfinite(value) for value in found.values())
    assert found["ndcg_exponential@1"] == 1


def test_repeated_names_count_again_in_the_reference_only() -> None:
    reference = score_prediction(["a", "a", "b"], ["a"], mode="reference")
    assert reference["ndcg_linear@5"] == pytest.approx(1 + 1 / np.log2(3))
    assert reference["map@5"] == 2
    assert reference["precision@5"] == 0.2
    correct = score_prediction(["a", "a", "b"], ["a"])
    assert correct["ndcg_linear@5"] == correct["map@5"] == 1
    assert score_prediction(["b", "b", "a"], ["a"])["mrr@5"] == 0.5


def test_no_labels() -> None:
    reference = score_prediction(["a"], [], mode="reference")
    assert {name for name, value in reference.items() if value} == {"recall@1", "recall@5"} | {
        "recall@10"
    }
    assert not any(score_prediction(["a"], []).values())
    assert not any(score_prediction([], ["a"]).values())


def test_a_string_is_one_label() -> None:
    assert score_prediction(["flag"], "flag")["hit@1"] == 1
    assert score_prediction(["f"], "flag")["hit@1"] == 0


@pytest.mark.parametrize("mode", ["correct", "reference"])
def test_bad_arguments(mode: Any) -> None:
    with pytest.raises(ValueError, match="1 of them distinct"):
        score_prediction(["a"], ["a", "a"], [1, 2], mode=mode)
    with pytest.raises(ValueError, match="1 grades for 2 labels"):
        score_prediction(["a"], ["a", "b"], [1], mode=mode)
    with pytest.raises(ValueError, match="cutoff 0"):
        score_prediction(["a"], ["a"], cutoffs=(0,), mode=mode)
    with pytest.raises(ValueError, match="'paper'"):
        score_prediction(["a"], ["a"], mode="paper")  # type: ignore[arg-type]


def _means(rank: int) -> dict[str, float]:
    sums = MeanSums()
    if rank == 0:  # rank 1 has no row of task a, and rank 2 has nothing at all
        sums.add_all({"hit@1": 1.0}, prefix="a/")
        sums.add_all({"hit@1": 0.0}, prefix="a/")
    if rank < 2:
        sums.add("b/hit@1", rank + 1, 3)
    return sums.compute()


def test_sums_over_uneven_ranks() -> None:
    for means in run_ranks(_means, 3):
        assert means == {"a/hit@1": 0.5, "b/hit@1": 0.5}


def test_sums_can_be_reset_and_be_empty() -> None:
    sums = MeanSums()
    assert sums.compute() == {}
    sums.add("a", 1.0)
    sums.add("never", 0.0, 0.0)
    assert sums.compute() == {"a": 1.0}
    sums.reset()
    assert sums.compute() == {}
