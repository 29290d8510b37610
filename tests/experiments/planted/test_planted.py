"""Where the helpful rationales are known, the contrasts must find them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from experiments.bootstrap import cluster_bootstrap, paired_bootstrap
from experiments.planted.selection import (
    CONTRASTS,
    SETTINGS,
    compare,
    difference,
    pair_precision,
    read_contrasts,
)
from experiments.planted.world import (
    FALSE_HELPFUL,
    HELPFUL,
    KIND_SHARES,
    LEAKING,
    USELESS,
    PlantedWorld,
    keep_precision,
    planted_world,
)
from mmemb.selection.contrasts import contrasts, false_helpful, placebo_rank

NUM_PAIRS = 500


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def world() -> PlantedWorld:
    return planted_world(NUM_PAIRS, generator=_generator())


@pytest.fixture(scope="module")
def found(world: PlantedWorld) -> dict[str, Tensor]:
    return read_contrasts(world, _generator(1))


def test_scores_are_laid_out_as_a_judge_does(world: PlantedWorld) -> None:
    score = world.score(0.5)
    assert score.shape == (NUM_PAIRS, 1 + 15, 1 + 4)
    direct = (world.query_BD * world.target_BD).sum(1) / 0.5
    assert torch.allclose(score[:, 0, 0], direct, atol=1e-5)
    assert world.kind_BK.unique().tolist() == [HELPFUL, USELESS, FALSE_HELPFUL, LEAKING]


@pytest.mark.parametrize("shares", SETTINGS.values(), ids=SETTINGS)
def test_kinds_come_in_the_stated_shares(shares: tuple[float, ...]) -> None:
    kind_BK = planted_world(1000, shares=shares, generator=_generator()).kind_BK
    drawn = kind_BK.flatten().bincount(minlength=4) / kind_BK.numel()
    assert torch.allclose(drawn, torch.tensor(shares), atol=4 * 0.5 / 4000**0.5)


def test_pairs_of_one_concept_share_target_and_look_alikes() -> None:
    world = planted_world(200, num_concepts=20, generator=_generator())
    sizes = world.concept_B.bincount(minlength=20)
    assert sizes.sum() == 200
    assert sizes.unique().numel() > 3, "concepts are unequal clusters"
    same_BB = world.concept_B[:, None] == world.concept_B
    near_BB = world.target_BD @ world.target_BD.T > 0.999
    assert torch.equal(same_BB, near_BB)
    first, second = (world.concept_B == world.concept_B[0]).nonzero()[:2, 0]
    assert torch.equal(world.negative_BND[first, :5], world.negative_BND[second, :5])
    assert not torch.equal(world.query_BD[first], world.query_BD[second])


def test_a_placebo_is_the_other_pairs_rationale() -> None:
    world = planted_world(2, num_rationales=1, shares=(1, 0, 0, 0), generator=_generator())
    placebo_BJ = world.placebo(20, _generator(), temperature=0.5)[:, 0]
    candidate_BCD = torch.cat([world.target_BD[:, None], world.negative_BND], 1)
    reading_BD = normalize(world.query_BD + world.move_BKD[:, 0].flip(0), dim=-1)
    score_BC = (candidate_BCD @ reading_BD[..., None])[..., 0] / 0.5
    expected_B = score_BC.log_softmax(1)[:, 0]
    for row in range(2):
        values = placebo_BJ[row][~placebo_BJ[row].isnan()]  # NaN: the pair drew itself
        assert 0 < len(values) < 20
        assert torch.allclose(values, expected_B[row].expand_as(values), atol=1e-5)


def test_neither_leaks_nor_the_own_concept_are_placebos() -> None:
    alone = planted_world(30, num_concepts=1, generator=_generator())
    assert alone.placebo(4, _generator()).isnan().all()
    leaks = planted_world(30, shares=(0, 0, 0, 1), generator=_generator())
    assert leaks.placebo(4, _generator()).isnan().all()


def test_ties_of_ranks_are_broken_and_nothing_else(
    world: PlantedWorld, found: dict[str, Tensor]
) -> None:
    raw_BK = contrasts(world.score())["raw"]
    rank_BK = placebo_rank(raw_BK, world.placebo(16, _generator(1)))
    added = (found["placebo_rank"] - rank_BK)[~world.names_target]
    assert added.min() >= -1e-6
    apart = rank_BK.unique().diff()
    assert added.max() < apart[apart > 1e-6].min()
    assert found["placebo_rank"][~world.names_target].unique().numel() > 0.95 * len(added)


@pytest.mark.parametrize("share", [0.3, 0.5])
@pytest.mark.parametrize("name", CONTRASTS)
def test_a_precision_is_the_mean_of_what_the_pairs_add(
    world: PlantedWorld, found: dict[str, Tensor], name: str, share: float
) -> None:
    kept = round(share * int((~world.names_target).sum()))
    assert (found[name] > found[name].nanquantile(1 - share)).sum() == pytest.approx(kept, abs=1)
    added_B = pair_precision(found[name], world.helpful, share)
    expected = keep_precision(found[name], world.helpful, share)
    assert added_B.mean().item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("share", [0.3, 0.5])
@pytest.mark.parametrize("strong", ["gain", "margin"])
@pytest.mark.parametrize("weak", ["raw", "positive"])
def test_counterfactuals_beat_weak_contrasts(
    world: PlantedWorld, found: dict[str, Tensor], strong: str, weak: str, share: float
) -> None:
    interval = difference([(world, found)], strong, weak, share)
    assert interval.low > 0
    direct = keep_precision(found[strong], world.helpful, share)
    direct -= keep_precision(found[weak], world.helpful, share)
    assert interval.mean == pytest.approx(direct, abs=1e-6)


def test_worlds_are_compared_as_one_and_a_seed_each() -> None:
    worlds = [planted_world(200, num_concepts=40, generator=_generator(s)) for s in range(2)]
    found = [read_contrasts(world, _generator()) for world in worlds]
    finding = compare(worlds, found, 0.3)
    gaps = np.subtract(finding.precision["margin"], finding.precision["raw"])
    assert finding.differences["raw"].mean == pytest.approx(gaps.mean(), abs=0.01)
    assert finding.spread["raw"] == pytest.approx(gaps.std(ddof=1), abs=1e-6)
    left = sum(int((~world.names_target).sum()) for world in worlds)
    assert finding.chance == pytest.approx(sum(int(w.helpful.sum()) for w in worlds) / left, 0.02)
    for values in finding.precision.values():
        assert max(values) <= min(1.0, finding.ceiling * 1.1)


def test_false_helpful_ones_are_what_they_are_called(world: PlantedWorld) -> None:
    found = contrasts(world.score(), num_hard_negatives=5)
    chosen = world.kind_BK == FALSE_HELPFUL
    bad, everything = false_helpful(found["positive"][chosen], found["margin"][chosen])
    good, helpful = false_helpful(found["positive"][world.helpful], found["margin"][world.helpful])
    assert bad / everything > 0.4
    assert good / helpful < 0.02


def test_no_contrast_sees_a_leak(world: PlantedWorld) -> None:
    """Why two-sided provenance is a rule of its own: a leak looks better than what is right."""
    for name in ("gain", "margin"):
        contrast = contrasts(world.score(), num_hard_negatives=5)[name]
        assert contrast[world.names_target].mean() > 0.7 * contrast[world.helpful].mean()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"shares": (0.5, 0.5)}, "four that sum to 1"),
        ({"shares": (0.5, 0.5, 0.5, -0.5)}, "four that sum to 1"),
        ({"num_negatives": 4}, "5 negatives"),
        ({"num_pairs": 0}, "0 pairs"),
        ({"num_concepts": 0}, "0 concepts"),
    ],
)
def test_bad_worlds(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        planted_world(**{"num_pairs": 10, **wrong}, generator=_generator())


@pytest.mark.slow
@pytest.mark.parametrize("weak", ["raw", "positive"])
def test_intervals_of_a_difference_are_as_wide_as_worlds_differ(weak: str) -> None:
    """Resampling plain hits gives intervals up to twice too wide: thresholds would not follow."""
    bounds, plain = [], []
    for seed in range(150):
        world = planted_world(500, num_concepts=100, shares=KIND_SHARES, generator=_generator(seed))
        found = read_contrasts(world, _generator(seed), num_placebos=2)
        bounds.append(difference([(world, found)], "margin", weak, 0.3, num_resamples=300))
        plain.append(_plain(world, found, weak, 0.3))
    means = np.array([interval.mean for interval in bounds])
    widths = np.array([interval.high - interval.low for interval in bounds])
    covered = np.mean([i.low <= means.mean() <= i.high for i in bounds])
    assert 0.90 <= covered <= 0.98
    assert widths.mean() == pytest.approx(2 * 1.96 * means.std(ddof=1), rel=0.15)
    assert np.mean(plain) > 1.2 * widths.mean()


def _plain(world: PlantedWorld, found: dict[str, Tensor], weak: str, share: float) -> float:
    """Width of the interval of hits by hits kept, with thresholds that stay where they are."""
    hits = []
    for name in ("margin", weak):
        values = found[name]
        kept_BK = values > values.nanquantile(1 - share)
        hits.append((kept_BK & world.helpful).sum(1) / kept_BK.sum(1).double().mean())
    interval = paired_bootstrap(*hits, world.concept_B.tolist(), num_resamples=300)
    return interval.high - interval.low


def test_the_clusters_of_a_difference_are_concepts() -> None:
    world = planted_world(300, num_concepts=10, generator=_generator())
    found = read_contrasts(world, _generator())
    left, right = (pair_precision(found[n], world.helpful, 0.3) for n in ("margin", "raw"))
    expected = cluster_bootstrap(left - right, world.concept_B.tolist(), num_resamples=2000)
    assert difference([(world, found)], "margin", "raw", 0.3) == expected
