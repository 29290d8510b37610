"""Contrasts on hand-made scores."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmemb.selection.contrasts import (
    contrasts,
    false_helpful,
    hard_negatives,
    margin,
    placebo_rank,
)

NAN, INF = math.nan, math.inf

# One pair, target and three candidates (the last is padding), none and two rationales and padding.
SCORE = torch.tensor(
    [
        [
            [1.0, 3.0, 2.0, NAN],
            [2.0, 2.0, 4.0, NAN],
            [0.0, 1.0, 0.0, NAN],
            [-INF, -INF, -INF, NAN],
        ]
    ]
)


def _log_p(target: float, *others: float) -> float:
    return target - math.log(sum(map(math.exp, (target, *others))))


def test_contrasts_by_hand() -> None:
    found = {
        name: value[0].tolist() for name, value in contrasts(SCORE, num_hard_negatives=1).items()
    }
    none, first, second = _log_p(1, 2, 0), _log_p(3, 2, 1), _log_p(2, 4, 0)
    assert found["raw"][:2] == pytest.approx([first, second], abs=1e-6)
    assert found["gain"][:2] == pytest.approx([first - none, second - none], abs=1e-6)
    assert found["positive"][:2] == [2.0, 1.0]
    # The hardest under every path is candidate 1: it moved by 0 and by 2.
    assert found["margin"][:2] == [2.0, -1.0]
    assert all(math.isnan(values[2]) for values in found.values())


def test_log_odds_are_taken_as_they_are() -> None:
    found = contrasts(SCORE, kind="log_odds")
    assert found["raw"][0, :2].tolist() == [3.0, 2.0]
    assert torch.equal(found["gain"][0, :2], found["positive"][0, :2])


def test_hard_negatives_are_the_union_over_paths() -> None:
    score = torch.zeros(1, 5, 3)
    score[0, 1:, 0] = torch.tensor([3.0, 2.0, 1.0, 0.0])
    score[0, 1:, 1] = torch.tensor([0.0, 0.0, 5.0, 0.0])
    score[0, 1:, 2] = torch.tensor([0.0, 4.0, 0.0, -INF])
    assert hard_negatives(score, 1).tolist() == [[True, True, True, False]]
    assert hard_negatives(score, 99).tolist() == [[True, True, True, True]]


def test_margin_without_negatives_is_the_positive() -> None:
    assert margin(SCORE[:, :1, :3]).tolist() == [[2.0, 1.0]]


@given(seed=st.integers(0, 10**6), shift=st.floats(-5, 5))
@settings(max_examples=25, deadline=None)
def test_gain_ignores_what_moves_all_candidates_alike(seed: int, shift: float) -> None:
    score = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(seed)).double()
    moved = score.clone()
    moved[:, :, 1] += shift
    for name in ("gain", "raw", "margin"):
        before, after = contrasts(score)[name], contrasts(moved)[name]
        assert torch.allclose(before, after, atol=1e-9)


def test_placebo_rank() -> None:
    donors = torch.tensor([[[1.0, 3.0, NAN, 2.0], [NAN] * 4]])
    rank = placebo_rank(torch.tensor([[2.0, 2.0]]), donors)
    assert rank[0, 0].item() == pytest.approx(0.5)  # beats one, ties with one, loses to one
    assert rank[0, 1].isnan()
    assert contrasts(SCORE, placebo_BKJ=torch.zeros(1, 3, 2))["placebo_rank"].shape == (1, 3)


def test_false_helpful_counts_no_padding() -> None:
    positive, worse = torch.tensor([[1.0, 1.0, NAN]]), torch.tensor([[-1.0, 0.5, NAN]])
    assert false_helpful(positive, worse) == (1, 2)
