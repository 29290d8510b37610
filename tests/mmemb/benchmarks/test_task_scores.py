"""One task's scores: tie bounds, both modes, collapse; against other libraries and by hand."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from mmemb.benchmarks.task_scores import Mode, score_embeddings, score_predictions
from mmemb.records.inputs import Side
from mmemb.records.padding import PADDING
from mmemb.records.pairs import Query
from mmemb.retrieval.ranking import ABSENT, MISS, pad_rows
from mmemb.retrieval.ranking_metrics import metrics_by_query, score_prediction
from mmemb.retrieval.tie_bounds import tie_bounds


def query(number: int, relevance: dict[str, float], text: str = "") -> Query:
    return Query(
        f"{number:08d}", "task", "test", f"c{number}", "f", Side(text or f"q{number}"), relevance
    )


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), graded=st.booleans())
def test_bounds_are_the_extremes_over_all_orders_of_equals(seed: int, graded: bool) -> None:
    random = torch.Generator().manual_seed(seed)
    score = torch.randint(3, (1, 5), generator=random).double()
    right = torch.randperm(5, generator=random)[: 1 + seed % 3].tolist()
    grades = [1.0 + (n if graded else 0) for n in range(len(right))]
    bounds = tie_bounds(score, pad_rows([right]), torch.tensor([grades]).double())
    lucky, unlucky = (metrics_by_query(bound, [grades], (1, 3))[0] for bound in bounds)
    names, values = range(5), score[0].tolist()
    orders = [
        order
        for order in itertools.permutations(names)
        if all(values[a] >= values[b] for a, b in itertools.pairwise(order))
    ]
    every = [score_prediction(order, right, grades, cutoffs=(1, 3)) for order in orders]
    for metric in ("hit@1", "recall@3", "ndcg_linear@3", "mrr@3"):
        assert lucky[metric] == pytest.approx(max(row[metric] for row in every)), metric
        assert unlucky[metric] == pytest.approx(min(row[metric] for row in every)), metric


@settings(max_examples=25, deadline=None)
@given(
    steps=st.lists(st.integers(0, 6), min_size=2, max_size=6),
    grades=st.lists(st.sampled_from([0.5, 1.0, 2.0, 3.0]), min_size=1, max_size=3),
    reach=st.integers(0, 3),
)
@example(steps=[4, 3], grades=[1.0, 3.0], reach=2)
def test_bounds_hold_every_order_of_near_scores(
    steps: list[int], grades: list[float], reach: int
) -> None:
    """Nearness is not transitive here: steps 0, 1, 2 with reach 1 have near and far pairs."""
    grades = grades[: len(steps)]
    right, tolerance = list(range(len(grades))), reach + 0.5
    lucky, unlucky = (
        metrics_by_query(bound, [grades], (1, 3))[0]
        for bound in tie_bounds(
            torch.tensor([steps]).double(),
            pad_rows([right]),
            torch.tensor([grades]).double(),
            tolerance,
        )
    )
    every = [
        score_prediction(order, right, grades, cutoffs=(1, 3))
        for order in itertools.permutations(range(len(steps)))
        if all(steps[a] >= steps[b] - reach for a, b in itertools.combinations(order, 2))
    ]
    for metric in every[0]:
        low, high = min(row[metric] for row in every), max(row[metric] for row in every)
        assert unlucky[metric] <= low + 1e-12, metric
        assert lucky[metric] >= high - 1e-12, metric
        if not metric.startswith("ndcg"):  # and where grades do not matter, not a bit wider
            assert (unlucky[metric], lucky[metric]) == pytest.approx((low, high)), metric


def test_bounds_of_lists_of_their_own() -> None:
    """The second query has a shorter list, and one right candidate that is not in it."""
    score = torch.tensor([[3.0, 2.0, 1.0], [2.0, 2.0, -torch.inf]])
    bounds = tie_bounds(score, torch.tensor([[1, PADDING], [0, ABSENT]]), torch.ones(2, 2))
    places = [[ranks.greater_QP[0, 0].item(), *ranks.greater_QP[1].tolist()] for ranks in bounds]
    assert places == [[1, 0, MISS], [1, 1, MISS]]


def vectors(rows: int, seed: int = 0, D: int = 16) -> torch.Tensor:
    return normalize(torch.randn(rows, D, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_random_vectors_are_right_by_chance_alone() -> None:
    names = [f"n{row}" for row in range(50)]
    queries = [query(n, {names[n % 50]: 1.0}) for n in range(1000)]
    found = score_embeddings("task", "hit@1", queries, vectors(1000), names, vectors(50, 1))
    assert found.means["hit@1"] == pytest.approx(0.02, abs=0.015)
    assert found.pessimistic <= found.means["hit@1"] <= found.optimistic
    assert found.means["hit@1"] * 1000 == pytest.approx(round(found.means["hit@1"] * 1000))
    for k in (1, 5, 10):
        assert found.means[f"recall@{k}"] == pytest.approx(found.means[f"hit@{k}"])
        assert found.means[f"precision@{k}"] == pytest.approx(found.means[f"hit@{k}"] / k)
        assert found.means[f"map@{k}"] == pytest.approx(found.means[f"mrr@{k}"])
        same = f"ndcg_linear@{k}", f"ndcg_exponential@{k}"
        assert found.means[same[0]] == pytest.approx(found.means[same[1]])
    assert found.means["f1@5"] == pytest.approx(found.means["hit@5"] / 3)
    assert found.means["f1@10"] == pytest.approx(found.means["hit@10"] * 2 / 11)
    assert found.means["ndcg_linear@1"] == pytest.approx(found.means["hit@1"])


def test_the_order_of_candidates_and_of_queries_changes_nothing() -> None:
    names = [f"n{row}" for row in range(40)]
    queries = [query(n, {names[n]: 1.0, names[n + 1]: 2.0}) for n in range(30)]
    q, c = vectors(30), vectors(40, 1)
    one = score_embeddings("task", "ndcg_linear@5", queries, q, names, c)
    order = torch.randperm(40).tolist()
    other = score_embeddings(
        "task", "ndcg_linear@5", queries[::-1], q.flip(0), [names[o] for o in order], c[order]
    )
    assert other.means == pytest.approx(one.means)
    assert other.values[::-1] == pytest.approx(one.values)
    assert other.predictions[::-1] == one.predictions


@pytest.mark.parametrize("mode", ["correct", "reference"])
def test_vectors_and_their_rankings_score_alike(mode: str) -> None:
    names = [str(row) for row in range(100, 140)]
    queries = [query(n, {names[n]: 3.0, names[n + 1]: 2.0, names[n + 2]: 2.0}) for n in range(30)]
    found = score_embeddings(
        "task", "ndcg_linear@5", queries, vectors(30), names, vectors(40, 1), mode=mode
    )
    again = score_predictions("task", "ndcg_linear@5", queries, found.predictions, mode)
    assert again.means["hit@10"] == pytest.approx(found.means["hit@10"])
    if mode == "correct":
        assert again.means == pytest.approx(found.means)


def test_the_references_grades_land_on_other_pages_where_ids_cross_a_multiple_of_8() -> None:
    names = [str(row) for row in range(40)]
    crossing = query(0, {"7": 3.0, "8": 2.0})  # a set of {7, 8} is walked as 8, 7
    apart = query(1, {"1": 3.0, "2": 2.0})
    q = normalize(torch.eye(40)[[7, 1]] + 0.5 * torch.eye(40)[[8, 2]], dim=1)
    correct, reference = (
        score_embeddings("t", "ndcg_linear@5", [crossing, apart], q, names, torch.eye(40), mode=m)
        for m in ("correct", "reference")
    )
    assert correct.values == pytest.approx((1.0, 1.0))
    assert reference.values[0] < 0.95
    assert reference.values[1] == pytest.approx(1.0)


def test_saved_rankings_are_scored_as_the_reference_scores_page_numbers() -> None:
    """By the order of whole numbers; that of a set of names changes from process to process."""
    crossing = query(0, {"7": 3.0, "8": 2.0})
    found = score_predictions("t", "ndcg_linear@1", [crossing], [["7", "0", "8"]], "reference")
    assert found.values == (pytest.approx(2 / 3),)
    with pytest.raises(ValueError, match="Label 'p8' has another grade"):
        score_predictions("t", "hit@1", [query(0, {"p8": 3.0, "p7": 2.0})], [["p7"]], "reference")


@pytest.mark.parametrize("mode", ["correct", "reference"])
def test_names_that_differ_in_leading_zeros_are_two(mode: Mode) -> None:
    found = score_predictions("t", "hit@1", [query(0, {"12": 1.0})], [["012", "12"]], mode)
    assert (found.means["hit@1"], found.means["mrr@5"]) == (0.0, 0.5)


def test_bounds_hold_the_references_grades() -> None:
    names, queries = [str(row) for row in range(40)], [query(0, {"7": 3.0, "8": 2.0})] * 2
    q = normalize(torch.eye(40)[[7, 7]] + 0.5 * torch.eye(40)[[8, 8]], dim=1)
    found = score_embeddings(
        "t", "ndcg_linear@5", queries, q, names, torch.eye(40), mode="reference"
    )
    assert found.pessimistic == found.optimistic == pytest.approx(found.means["ndcg_linear@5"])


def test_lists_of_their_own_with_repeats() -> None:
    names = ["a", "b", "c"]
    q = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    c = normalize(torch.tensor([[1.0, 0.1], [0.9, 0.5], [0.0, 1.0]]), dim=1)
    queries = [query(0, {"b": 1.0}), query(1, {"c": 1.0})]
    found = score_embeddings("t", "hit@1", queries, q, names, c, [[1, 2, 2], [0, 2, 0]])
    assert found.values == (1.0, 1.0)
    assert found.predictions == (("b", "c"), ("c", "a"))


def test_constant_and_broken_embeddings_fail_loudly() -> None:
    names, queries = ["a", "b", "c"], [query(n, {"a": 1.0}) for n in range(4)]
    same = normalize(torch.ones(4, 8), dim=1)
    with pytest.raises(ValueError, match="query vectors are all the same"):
        score_embeddings("t", "hit@1", queries, same, names, vectors(3, D=8))
    with pytest.raises(ValueError, match="candidate vectors are all the same"):
        score_embeddings("t", "hit@1", queries, vectors(4, D=8), names, same[:3])
    two = torch.cat([same[:2], -same[:1]])  # right and wrong alike, but not all
    with pytest.raises(ValueError, match="in 4 of 4 queries"):
        score_embeddings("t", "hit@1", queries, vectors(4, D=8), names, two)
    broken = vectors(4, D=8)
    broken[2] = torch.nan
    with pytest.raises(ValueError, match=r"query vectors row\(s\) 2"):
        score_embeddings("t", "hit@1", queries, broken, names, vectors(3, 1, 8))


def test_equal_right_candidates_of_unequal_grades_have_not_collapsed() -> None:
    """They may change places with one another, which changes NDCG; no wrong one is near."""
    queries = [query(n, {"a": 2.0, "b": 1.0}) for n in range(4)]
    candidate = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    angle = torch.linspace(0.1, 0.4, 4)
    found = score_embeddings(
        "t", "ndcg_linear@5", queries, torch.stack([angle.cos(), angle.sin()], 1), list("abc"),
        candidate,
    )  # fmt: skip
    assert found.ties == 0
    assert found.pessimistic < found.means["ndcg_linear@5"] < found.optimistic == 1


def test_a_right_candidate_that_is_none_is_named() -> None:
    with pytest.raises(ValueError, match="right candidate 'z' of query 00000000 is not among"):
        score_embeddings("t", "hit@1", [query(0, {"z": 1.0})], vectors(1), ["a", "b"], vectors(2))


def test_one_question_asked_twice_is_no_collapse() -> None:
    queries = [query(n, {"a": 1.0}, text="the same") for n in range(2)]
    one = vectors(1).expand(2, -1)
    assert len(score_embeddings("t", "hit@1", queries, one, ["a", "b"], vectors(2, 1)).values) == 2
