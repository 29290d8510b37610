"""The keep rule: thresholds, placebos and weights."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmemb.selection.keep_rule import KeepRule, keep, keep_threshold, weights

NAN, INF = math.nan, math.inf


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
    with pytest.raises(ValueError, match="no draft"):
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


def random_contrasts() -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Contrasts of 40 pairs with four or three rationales each, and their counts."""
    random = torch.Generator().manual_seed(0)
    names = ("raw", "gain", "positive", "margin")
    found = {name: torch.randn(40, 4, generator=random) for name in names}
    found["placebo_rank"] = torch.arange(160).reshape(40, 4) % 3 / 2
    for value_BK in found.values():
        value_BK[1::2, 3] = NAN
    return found, 1 + torch.arange(160).reshape(40, 4) % 2


@pytest.mark.parametrize("contrast", ["raw", "gain", "positive", "margin"])
@pytest.mark.parametrize("share", [0.3, 0.5])
@pytest.mark.parametrize("min_placebo_rank", [0.0, 0.5])
def test_every_rule_keeps_the_same_share_by_its_own_contrast(
    contrast: str, share: float, min_placebo_rank: float
) -> None:
    found, count_BK = random_contrasts()
    rule = KeepRule(contrast=contrast, keep_share=share, min_placebo_rank=min_placebo_rank)
    value_BK = rule.value(found)
    kept_BK, _ = rule.choose(value_BK, count_BK, rule.eta(value_BK))
    assert int(kept_BK.sum()) == round(share * 140)

    rivals_BK = ~kept_BK & (found["placebo_rank"] >= min_placebo_rank)
    assert (found["placebo_rank"][kept_BK] >= min_placebo_rank).all()
    assert found[contrast][kept_BK].min() > found[contrast][rivals_BK].max()


def test_too_few_that_beat_the_placebos_are_all_kept_and_no_other() -> None:
    found, count_BK = random_contrasts()
    rule = KeepRule(keep_share=0.9, min_placebo_rank=1.0)
    value_BK = rule.value(found)
    assert rule.eta(value_BK) == -INF
    kept_BK, _ = rule.choose(value_BK, count_BK, -INF)
    assert torch.equal(kept_BK, found["placebo_rank"] == 1.0)


def test_a_rationale_without_placebos_is_not_held_back() -> None:
    found = {"gain": torch.tensor([[1.0, 2.0]]), "placebo_rank": torch.tensor([[NAN, 0.0]])}
    assert KeepRule(min_placebo_rank=1.0).value(found).tolist() == [[1.0, -INF]]


@pytest.mark.parametrize("hard", [False, True])
def test_weights_of_a_pair_sum_to_one_or_to_nothing(hard: bool) -> None:
    found, count_BK = random_contrasts()
    rule = KeepRule(keep_share=0.3, hard=hard)
    value_BK = rule.value(found)
    kept_BK, weight_BK = rule.choose(value_BK, count_BK, rule.eta(value_BK))
    assert torch.allclose(weight_BK.sum(1), kept_BK.any(1).float())
    assert not hard or set(weight_BK.flatten().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("hard", [False, True])
def test_a_batch_without_rationales_has_nothing_to_keep(hard: bool) -> None:
    nothing = torch.zeros(3, 0)
    kept_BK, weight_BK = KeepRule(hard=hard).choose(nothing, nothing, 0.0)
    assert kept_BK.shape == weight_BK.shape == (3, 0)


def test_no_selection_keeps_all_and_weighs_by_count() -> None:
    rule = KeepRule(contrast="none", keep_share=1.0)
    value_BK = rule.value({"raw": torch.tensor([[-3.0, 1.0, 2.0, NAN]])})
    kept_BK, weight_BK = rule.choose(value_BK, torch.tensor([[1, 2, 1, 1]]), rule.eta(value_BK))
    assert kept_BK.tolist() == [[True, True, True, False]]
    assert weight_BK[0].tolist() == pytest.approx([0.25, 0.5, 0.25, 0.0])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"contrast": "best"}, "contrast 'best'"),
        ({"keep_share": 2}, "keep_share 2: expected a share between 0 and 1"),
        ({"contrast": "none"}, "Set keep_share to 1"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        KeepRule(**settings)
