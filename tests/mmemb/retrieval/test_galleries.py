"""Galleries: where the right candidates stand, and who comes first."""

from __future__ import annotations

import json
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmemb.records.inputs import Side
from mmemb.records.outputs import CandidateOutput
from mmemb.records.pairs import Query
from mmemb.retrieval.galleries import Galleries, best_rank
from mmemb.retrieval.ranking import TiedRanks
from mmemb.storage.shard_index import ShardIndex
from tests.fixtures.tiny_experiment import Experiment

NAMES = tuple("abcde")


def galleries(values: list[float]) -> Galleries:
    """One gallery `g` in which candidate i scores `values[i]` against the query [1]."""
    vectors_ND = torch.tensor(values)[:, None]
    names = NAMES[: len(values)]
    return Galleries(
        [CandidateOutput(vectors_ND, names, ("g",) * len(names), tuple(range(len(names))))]
    )


def query(right: str, candidates: tuple[int, ...] | None = None) -> Query:
    relevance = dict.fromkeys(right, 1.0)
    return Query(
        "k", "task", "test", "c", "c/f", Side("?"), relevance, gallery="g", candidates=candidates
    )


@pytest.mark.parametrize(
    ("values", "asked", "rank", "top"),
    [
        ([5, 4, 3, 2, 1], query("c"), 3.0, "a"),
        ([5, 4, 3, 2, 1], query("db"), 2.0, "a"),
        ([5, 5, 5, 2, 1], query("b"), 2.0, "a"),
        ([5, 5, 5, 2, 1], query("bc"), 4 / 3, "a"),
        ([1, 2, 3, 4, 5], query("c", candidates=(0, 1, 2)), 1.0, "c"),
        ([1, 2, 3, 4, 5], query("b", candidates=(4, 1, 1, 0)), 2.0, "e"),
    ],
)
def test_standings(values: list[float], asked: Query, rank: float, top: str) -> None:
    (found,) = galleries(values).standings(torch.ones(1, 1), [asked])
    assert (found.rank, found.top) == (pytest.approx(rank), top)


@pytest.mark.parametrize(
    "asked",
    [query("a"), query("ace"), query("bd", candidates=(4, 1, 1, 3)), query("abcde")],
    ids=["one right", "three right", "a list of its own", "all right"],
)
def test_the_chance_level_is_the_recall_of_candidates_that_cannot_be_told_apart(
    asked: Query,
) -> None:
    (told,) = galleries([5, 4, 3, 2, 1]).ranked(torch.ones(1, 1), [asked], (1, 2, 10), 2)
    (equal,) = galleries([1] * 5).ranked(torch.ones(1, 1), [asked], (1, 2, 10), 0)
    for k in (1, 2, 10):
        assert told.metrics[f"chance@{k}"] == pytest.approx(equal.metrics[f"recall@{k}"])
    assert told.candidates == (5 if asked.candidates is None else 3)
    assert len(told.found) == 2
    assert equal.found == ()


def test_a_candidate_that_is_listed_twice_counts_once() -> None:
    found, vectors = galleries([5, 4, 3, 2, 1]), torch.ones(1, 1)
    once, twice = [query("b", candidates=(0, 1, 2))], [query("b", candidates=(0, 1, 0, 2, 0))]
    for asked in (once, twice):
        assert found.metrics(vectors, asked, (1, 2))[0]["mrr@2"] == 0.5
        assert found.averaged_metrics([vectors, vectors], asked, 1.0, (1, 2))[0]["mrr@2"] == 0.5
        expected = torch.tensor([5.0, 4.0, 3.0]).log_softmax(0)[1].item()
        assert found.log_probability(vectors, asked, 1.0).item() == pytest.approx(expected)
        assert found.of_query(asked[0]).tolist() == [[5], [4], [3]]
    assert found.own_lists(twice) == [[0, 1, 0, 2, 0]]  # as listed: the reference counts repeats


def test_standings_keep_the_order_of_queries_of_both_kinds() -> None:
    asked = [query("a", candidates=(0, 1)), query("b"), query("e", candidates=(4, 3))]
    found = galleries([5, 4, 3, 2, 1]).standings(torch.ones(3, 1), asked)
    assert [(one.rank, one.top) for one in found] == [(1, "a"), (2, "a"), (2, "d")]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=5), st.data())
def test_the_best_rank_is_the_mean_over_all_orders_of_equals(
    values: list[int], data: st.DataObject
) -> None:
    right = data.draw(st.sets(st.integers(0, len(values) - 1), min_size=1))
    asked = query("".join(NAMES[i] for i in right))
    (found,) = galleries([float(v) for v in values]).standings(torch.ones(1, 1), [asked])
    orders = [sorted(order, key=lambda i: -values[i]) for order in permutations(range(len(values)))]
    ranks = [1 + min(order.index(i) for i in right) for order in orders]
    assert found.rank == pytest.approx(sum(ranks) / len(ranks))


def test_no_query_has_no_rank() -> None:
    assert galleries([1.0]).standings(torch.ones(0, 1), []) == []
    empty = torch.zeros(0, 1, dtype=torch.long)
    assert best_rank(TiedRanks(empty, empty, empty.bool())).shape == (0,)


def test_depth_values_hold_the_ranks_that_their_metrics_say(clip_experiment: Experiment) -> None:
    index = ShardIndex.open(clip_experiment.folder / "depth_values")
    queries = ShardIndex.open(clip_experiment.root / "queries")
    for entry in index.entries:
        row = json.loads(index.read(entry, {"json"})["json"])
        asked = json.loads(queries.read(queries.by_key[entry.key], {"json"})["json"])
        assert len(row["ranks"]) == len(row["top"]) == len(row["depths"]) == 2
        for metrics, rank, top in zip(row["metrics"], row["ranks"], row["top"], strict=True):
            assert (metrics["hit@1"] == 1) == (rank == 1)
            if rank.is_integer():
                assert metrics["mrr@10"] == pytest.approx(1 / rank if rank <= 10 else 0)
            if rank == 1:
                assert top in asked["relevance"]


def test_the_best_candidates_of_a_gallery_and_of_a_list_of_its_own() -> None:
    asked = [query("a"), query("e", (4, 1, 2)), query("c")]
    found = galleries([5, 4, 3, 2, 1]).best(torch.ones(3, 1), asked, 4)
    assert found == [("a", "b", "c", "d"), ("b", "c", "e"), ("a", "b", "c", "d")]
