"""Selecting again: equal keep rates, weights that sum to one, draws that were never made."""

from __future__ import annotations

import pytest
import torch
from msgspec.structs import replace

from experiments.pipelines.reselection import Reselection, Rule, of_seeds, reselect
from mmemb.rationales import fold_candidates
from mmemb.records.rationales import Rationale, ScoredRationale

TEXT = "<think>It is {0}.</think><answer>{0}</answer>"


def rationale(answer: str, seed: int) -> Rationale:
    return Rationale(TEXT.format(answer), "w", "m", "1", "p", "d", seed, num_tokens=5)


def pools(num: int = 40, width: int = 4) -> list[tuple[ScoredRationale, ...]]:
    random = torch.Generator().manual_seed(0)
    names = ("raw", "gain", "positive", "margin")
    return [
        tuple(
            ScoredRationale(
                replace(rationale(f"{row}-{k}", k), count=1 + k % 2),
                dict(zip(names, torch.randn(4, generator=random).tolist(), strict=True))
                | {"placebo_rank": [0.0, 0.5, 1.0][(row + k) % 3]},
            )
            for k in range(width - row % 2)
        )
        for row in range(num)
    ]


@pytest.mark.parametrize("rule", ["raw", "gain", "positive", "margin", "placebo_gain"])
@pytest.mark.parametrize("share", [0.3, 0.5])
def test_every_rule_keeps_the_same_share_by_its_own_contrast(rule: Rule, share: float) -> None:
    found = [s for pool in reselect(pools(), Reselection(rule, share)) for s in pool]
    kept = [s for s in found if s.kept]
    assert len(kept) == round(share * len(found))
    name = "gain" if rule == "placebo_gain" else rule
    rivals = [s for s in found if not s.kept]
    if rule == "placebo_gain":
        assert all(s.scores["placebo_rank"] >= 0.5 for s in kept)
        rivals = [s for s in rivals if s.scores["placebo_rank"] >= 0.5]
    assert min(s.scores[name] for s in kept) > max(s.scores[name] for s in rivals)


@pytest.mark.parametrize("hard", [False, True])
def test_weights_of_a_pool_sum_to_one_or_to_nothing(hard: bool) -> None:
    for pool in reselect(pools(), Reselection("gain", 0.3, hard)):
        total = sum(scored.weight for scored in pool)
        assert total == pytest.approx(float(any(scored.kept for scored in pool)))
        assert not hard or {scored.weight for scored in pool} <= {0.0, 1.0}


def test_no_selection_weighs_by_count() -> None:
    (pool,) = reselect(pools(1, 3), Reselection("none"))
    assert [scored.weight for scored in pool] == pytest.approx([0.25, 0.5, 0.25])


def test_a_smaller_pool_is_what_fewer_draws_would_have_given() -> None:
    drawn = [rationale(answer, seed) for seed, answer in enumerate("aabacbba")]
    whole, _ = fold_candidates(drawn)
    for num in (1, 2, 4, 8):
        small = of_seeds(tuple(ScoredRationale(r) for r in whole), range(num))
        expected, _ = fold_candidates(drawn[:num])
        assert [(s.rationale.answer, s.rationale.count) for s in small] == [
            (r.answer, r.count) for r in expected
        ]


def test_a_missing_contrast_and_an_unknown_rule_are_named() -> None:
    with pytest.raises(ValueError, match="not scored by 'margin'"):
        reselect([(ScoredRationale(rationale("a", 0), {"gain": 1.0}),)], Reselection("margin"))
    with pytest.raises(ValueError, match="'best'"):
        Reselection("best")
