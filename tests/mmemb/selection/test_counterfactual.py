"""Contrasts on hand-made scores, thresholds and weights, leaks, and the fitted temperature."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmemb.selection.counterfactual import (
    contrasts,
    false_helpful,
    fit_temperature,
    hard_negatives,
    keep,
    keep_threshold,
    margin,
    names_target,
    placebo_rank,
    weights,
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
    found = {name: value[0].tolist() for name, value in contrasts(SCORE, num_hard=1).items()}
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


@given(values=st.lists(st.integers(-9, 9), min_size=1, max_size=40), share=st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_threshold_keeps_the_share_and_never_more(values: list[int], share: float) -> None:
    contrast = torch.tensor([*map(float, values), NAN])
    eta = keep_threshold(contrast, share)
    kept = int(keep(contrast, eta).sum())
    assert kept <= round(share * len(values))
    if len(set(values)) == len(values):
        assert kept == round(share * len(values))


def test_threshold_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match=r"1\.5"):
        keep_threshold(torch.zeros(3), 1.5)
    with pytest.raises(ValueError, match="no candidate"):
        keep_threshold(torch.tensor([NAN]), 0.5)


def test_weights_are_the_posterior_over_the_kept() -> None:
    contrast = torch.tensor([[1.0, 2.0, 3.0, NAN], [1.0, 1.0, 1.0, 1.0]])
    count = torch.tensor([[4, 1, 9, 1], [1, 1, 1, 1]])
    kept = torch.tensor([[True, True, False, False], [False] * 4])
    soft = weights(contrast, count, kept)
    expected = torch.tensor([4 * math.e, math.e**2, 0, 0])
    assert torch.allclose(soft[0], expected / expected.sum())
    assert soft[1].tolist() == [0, 0, 0, 0]
    hard = weights(contrast, count, kept, hard=True)
    assert hard.tolist() == [[1, 0, 0, 0], [0, 0, 0, 0]]
    cold = weights(contrast, count, kept, temperature=0.01)
    assert cold[0].tolist() == pytest.approx([0, 1, 0, 0], abs=1e-6)


@pytest.mark.parametrize(
    ("text", "answers", "named"),
    [
        ("<answer>Paris, FRANCE</answer>", ["France"], True),
        ("the Nigerian capital", ["Niger", "Nigeria"], False),
        ("São Tomé and Príncipe!", ["sao tome and principe"], True),
        ("Cote d'Ivoire", ["Côte d’Ivoire"], True),
        ("Straße", ["STRASSE"], True),
        ("a guinea_pig", ["pig"], True),
        ("", ["France"], False),
        ("France", [], False),
        ("France", ["", "  "], False),
        ("the 🇫🇷 flag", ["🇫🇷"], True),
        ("the 🇩🇪 flag", ["🇫🇷"], False),
    ],
)
def test_names_target(text: str, answers: list[str], named: bool) -> None:
    assert names_target(text, answers) is named


def test_fitted_temperature_is_the_one_that_drew_the_targets() -> None:
    generator = torch.Generator().manual_seed(0)
    score = torch.randn(20_000, 6, generator=generator)
    target = torch.multinomial((score / 0.3).softmax(1), 1, generator=generator)
    score = torch.cat([score.gather(1, target), score.scatter(1, target, -INF)], 1)
    assert fit_temperature(score) == pytest.approx(0.3, rel=0.03)
    with_padding = torch.cat([score, torch.full((1, 7), NAN)])
    assert fit_temperature(with_padding) == pytest.approx(fit_temperature(score))


def test_fitted_temperature_at_the_bounds() -> None:
    right = torch.tensor([[1.0, 0.0]])
    assert fit_temperature(right) < 0.1
    assert fit_temperature(-right) == pytest.approx(1e3, rel=1e-3)
    with pytest.raises(ValueError, match="calibration"):
        fit_temperature(torch.empty(0, 3))


def test_false_helpful_counts_no_padding() -> None:
    positive, worse = torch.tensor([[1.0, 1.0, NAN]]), torch.tensor([[-1.0, 0.5, NAN]])
    assert false_helpful(positive, worse) == (1, 2)


def test_a_run_of_accents_is_read_in_a_moment() -> None:
    """Python would put them in order in a time of their square: a minute."""
    text = "Cote d'Ivoire" + "\u0315\u0300" * 50_000 + " is it"
    assert names_target(text, ["Côte d’Ivoire"])
