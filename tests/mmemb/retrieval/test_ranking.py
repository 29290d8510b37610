"""Ranks and search against a sort, under chunking, ties, local lists and broken vectors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmemb.records.padding import PADDING
from mmemb.retrieval.ranking import (
    ABSENT,
    MISS,
    TiedRanks,
    pad_rows,
    rank_positives,
    rank_scores,
    search,
)
from mmemb.retrieval.ranking_metrics import metrics_by_query, score_prediction


def _vectors(seed: int, *shape: int) -> torch.Tensor:
    vectors = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors, dim=-1)


def _lists(ranks: TiedRanks) -> tuple[list[list[int]], list[list[int]]]:
    return ranks.greater_QP.tolist(), ranks.equal_QP.tolist()


@given(
    scores=st.lists(st.integers(0, 4), min_size=2, max_size=12),
    right=st.sets(st.integers(0, 11), min_size=1, max_size=4),
)
@settings(max_examples=60, deadline=None)
def test_ranks_are_counts(scores: list[int], right: set[int]) -> None:
    right = {column for column in right if column < len(scores)} or {0}
    ranks = rank_scores(torch.tensor([scores]).double(), pad_rows([sorted(right)]))
    greater = [sum(s > scores[c] for s in scores) for c in sorted(right)]
    assert _lists(ranks) == ([greater], [[scores.count(scores[c]) for c in sorted(right)]])


def test_padding_and_absent_ones() -> None:
    ranks = rank_scores(torch.tensor([[1.0, 2.0]]), torch.tensor([[1, ABSENT, PADDING]]))
    assert ranks.valid_QP.tolist() == [[True, True, False]]
    assert ranks.greater_QP[0, :2].tolist() == [0, MISS]
    (only,) = ranks
    assert len(ranks) == 1
    assert torch.equal(only.greater_QP, ranks.greater_QP)


def test_memory_never_changes_the_result() -> None:
    query, candidate = _vectors(0, 23, 8), _vectors(1, 40, 8)
    positive = [[i, (3 * i) % 40] for i in range(23)]
    whole = rank_positives(query, candidate, positive)
    for numbers in (1, 100, 1000):
        part = rank_positives(query, candidate, positive, chunk_numbers=numbers)
        assert _lists(part) == _lists(whole)
        found = search(query, candidate, 5, chunk_numbers=numbers)[1]
        assert torch.equal(found, search(query, candidate, 5)[1])
    own = (query.double() @ candidate.double().T).argsort(1, descending=True)
    place = (own == torch.arange(23)[:, None]).nonzero()[:, 1]
    assert whole.greater_QP[:, 0].tolist() == place.tolist()


def test_equal_vectors_tie_whatever_the_kernel_does() -> None:
    candidate = _vectors(0, 1, 384).repeat(777, 1)
    ranks = rank_positives(_vectors(1, 3, 384), candidate, [[0], [500], [776]])
    assert _lists(ranks) == ([[0]] * 3, [[777]] * 3)
    assert search(_vectors(1, 3, 384), candidate, 4)[1].tolist() == [[0, 1, 2, 3]] * 3


def test_local_lists_are_a_gallery_of_their_own() -> None:
    query, candidate = _vectors(0, 6, 8), _vectors(1, 30, 8)
    local = [[5, 1, 9, 1], [2, 3], [4], [0, 29, 7], [11, 12, 13], [8, 6]]
    positive = [[1, 5], [3], [4], [7], [0], [6]]
    ranks = rank_positives(query, candidate, positive, local_QC=local, chunk_numbers=1)
    found_scores, found = search(query, candidate, 4, local_QC=local)
    for i, own in enumerate(local):
        distinct = sorted(set(own))
        if positive[i][0] in own:
            alone = rank_positives(
                query[i : i + 1], candidate[distinct], [[distinct.index(p) for p in positive[i]]]
            )
            width = len(positive[i])
            assert ranks.greater_QP[i, :width].tolist() == alone.greater_QP[0].tolist()
            assert ranks.equal_QP[i, :width].tolist() == [1] * width
        best = search(query[i : i + 1], candidate[distinct], 4)[1][0].tolist()
        listed = [row for row in found[i].tolist() if row != -1]
        assert listed == [distinct[column] for column in best]
        assert found_scores[i, len(listed) :].isinf().all()
    assert ranks.greater_QP[4, 0] == MISS  # right, but not in the list


@given(data=st.data(), lengths=st.lists(st.integers(1, 8), min_size=1, max_size=3))
@settings(max_examples=25, deadline=None)
def test_local_lists_score_as_their_rankings_do(data: st.DataObject, lengths: list[int]) -> None:
    """Lists shorter than a cutoff, repeated candidates, right ones that are not in the list."""
    number = st.integers(0, 7)
    lists = [data.draw(st.lists(number, min_size=n, max_size=n)) for n in lengths]
    rights = [data.draw(st.lists(number, min_size=1, max_size=3, unique=True)) for _ in lists]
    grades = [[1.0 + n for n in range(len(right))] for right in rights]
    candidate = torch.tensor(data.draw(st.permutations(range(8)))).double()[:, None]
    query = torch.ones(len(lists), 1).double()

    ranks = rank_positives(query, candidate, rights, local_QC=lists)
    found = metrics_by_query(ranks, grades)
    top_Qk = search(query, candidate, 8, local_QC=lists)[1].tolist()
    for row, right in enumerate(rights):
        ranked = sorted(set(lists[row]), key=lambda name: -candidate[name].item())
        assert [name for name in top_Qk[row] if name != PADDING] == ranked
        assert found[row] == pytest.approx(score_prediction(ranked, right, grades[row]))


def test_search_takes_equals_in_listed_order() -> None:
    candidate = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    scores, rows = search(torch.tensor([[1.0, 0.0]]), candidate, 9)
    assert rows.tolist() == [[1, 2, 3, 0]]
    assert scores.tolist() == [[1, 1, 1, 0]]


def test_no_queries() -> None:
    ranks = rank_positives(torch.zeros(0, 4), torch.zeros(3, 4), [])
    assert len(ranks) == 0
    assert search(torch.zeros(0, 4), torch.zeros(3, 4), 2)[1].shape == (0, 2)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_broken_embeddings_are_named(bad: float) -> None:
    query, candidate = torch.zeros(4, 2), torch.zeros(20, 2)
    query[[1, 3]] = bad
    with pytest.raises(ValueError, match=r"NaN embedding: query row\(s\) 1, 3 \(2 of 4\)"):
        rank_positives(query, candidate, [[0]] * 4)
    candidate[5:, 1] = bad
    with pytest.raises(ValueError, match=r"candidate row\(s\) 5, 6, .*\.\.\. \(15 of 20\)"):
        search(torch.zeros(4, 2), candidate, 1)
