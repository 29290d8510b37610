"""The cluster bootstrap against closed forms and coverage."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.bootstrap import (
    Interval,
    cluster_bootstrap,
    cluster_standard_error,
    minimal_detectable_effect,
    paired_bootstrap,
    seed_spread,
)


def test_constant_values_have_no_width() -> None:
    assert cluster_bootstrap([2.0] * 6, list("aabcde")) == Interval(2.0, 2.0, 2.0, 5)


@pytest.mark.parametrize("clusters", ["aaaaaa", "abcddd"])
def test_too_few_clusters_have_a_mean_and_no_interval(clusters: str) -> None:
    """All resamples of one cluster are alike: a width of zero would exclude 0."""
    for found in (
        cluster_bootstrap([1.0] * 6, clusters),
        paired_bootstrap([1.0] * 6, [0.0] * 6, clusters),
    ):
        assert found == Interval(1.0, None, None, len(set(clusters)))
        assert not found.excludes_zero
        assert not found.non_inferior()
        assert not found.is_above(-9)
        assert not found.is_below(9)
    assert minimal_detectable_effect([1.0, 0.0] * 3, clusters) is None


@given(
    value=st.lists(st.floats(-1, 1), min_size=1, max_size=12),
    clusters=st.lists(st.integers(0, 9), min_size=12, max_size=12),
)
@settings(max_examples=25, deadline=None)
def test_there_is_an_interval_from_five_clusters_on(
    value: list[float], clusters: list[int]
) -> None:
    found = cluster_bootstrap(value, clusters[: len(value)], num_resamples=20)
    assert found.clusters == len(set(clusters[: len(value)]))
    assert (found.low is None) == (found.high is None) == (found.clusters < 5)
    assert ("no interval" in str(found)) == (found.clusters < 5)
    assert f"{found.clusters} cluster" in str(found), "fewer than 30 are always shown"


def test_the_number_of_clusters_stands_beside_an_interval_below_thirty() -> None:
    assert Interval(0.5, 0.25, 0.75, 30).text(100, 1) == "50.0 [25.0, 75.0]"
    assert Interval(0.5, 0.25, 0.75, 29).text(100, 1) == "50.0 [25.0, 75.0] (29 clusters)"
    assert Interval(0.5, None, None, 1).text(100, 1) == "50.0 [no interval: 1 cluster]"
    row = {"mean": 0.5, "low": 0.25, "high": 0.75, "queries": 9}  # of an older report
    assert Interval.from_row(row) == Interval(0.5, 0.25, 0.75)
    assert Interval(0.5, 0.25, 0.75).bounds(100, 2) == "[25.00, 75.00]"


def test_width_is_that_of_the_cluster_means() -> None:
    generator = np.random.default_rng(0)
    effect = generator.normal(size=200)
    value = np.repeat(effect, 5)  # five queries that are one: 200 observations, not 1,000
    clusters = np.repeat(np.arange(200), 5).tolist()
    error = effect.std(ddof=1) / np.sqrt(200)
    found = cluster_bootstrap(value, clusters)
    assert found.mean == pytest.approx(effect.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.05)
    assert cluster_standard_error(value, clusters) == pytest.approx(error, rel=1e-6)
    alone = cluster_bootstrap(value, range(1000))
    assert found.high - found.low > 2 * (alone.high - alone.low)


def test_unequal_clusters_are_a_ratio() -> None:
    generator = np.random.default_rng(0)
    sizes = generator.integers(1, 9, 300)
    clusters = np.repeat(np.arange(300), sizes)
    value = generator.normal(size=300)[clusters] + generator.normal(size=len(clusters))
    found = cluster_bootstrap(value, clusters.tolist())
    assert found.mean == pytest.approx(value.mean())
    error = cluster_standard_error(value, clusters.tolist())
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.06)


def test_interval_covers_the_truth() -> None:
    generator = np.random.default_rng(1)
    clusters = np.repeat(np.arange(60), 3).tolist()
    covered = 0
    for seed in range(200):
        value = np.repeat(generator.normal(size=60), 3) + generator.normal(size=180)
        found = cluster_bootstrap(value, clusters, num_resamples=500, seed=seed)
        covered += found.low <= 0 <= found.high
    assert 0.89 <= covered / 200 <= 0.99


def test_tasks_count_alike_whatever_their_size() -> None:
    value, tasks = [1.0] * 9 + [0.0], ["big"] * 9 + ["small"]
    clusters = [str(i) for i in range(10)]
    assert cluster_bootstrap(value, clusters).mean == pytest.approx(0.9)
    found = cluster_bootstrap(value, clusters, tasks=tasks)
    assert found.mean == pytest.approx(0.5)
    # A resample without the small task is the mean of the other alone, not NaN.
    assert np.isfinite([found.low, found.high]).all()


def test_tasks_error_in_closed_form() -> None:
    generator = np.random.default_rng(2)
    clusters = list(range(150)) * 2
    tasks = ["a"] * 150 + ["b"] * 150
    shared = generator.normal(size=150)
    value = np.concatenate([shared, shared + generator.normal(size=150)])
    found = cluster_bootstrap(value, clusters, tasks=tasks)
    error = cluster_standard_error(value, clusters, tasks=tasks)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.06)


def test_pairing_removes_what_both_share() -> None:
    generator = np.random.default_rng(0)
    base = generator.normal(size=400)
    left = base + 0.1 + 0.05 * generator.normal(size=400)
    found = paired_bootstrap(left, base, range(400))
    assert found.excludes_zero
    assert not cluster_bootstrap(base, range(400)).excludes_zero
    assert found.non_inferior()
    assert not paired_bootstrap(base, left, range(400)).non_inferior()


def test_seeds_are_averaged_first() -> None:
    value = np.array([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
    five = np.repeat(value, 2, axis=1)
    assert cluster_bootstrap(five, "abcdef") == cluster_bootstrap(five.mean(0), "abcdef")
    both = paired_bootstrap(value, np.zeros(3), "abc")
    assert both.mean == pytest.approx(2 / 3)
    assert seed_spread(value) == 0
    assert np.isnan(seed_spread(value[0]))


def test_same_seed_same_interval_and_chunks_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    value = np.random.default_rng(0).normal(size=50)
    first = cluster_bootstrap(value, range(50), seed=3)
    assert first == cluster_bootstrap(value, range(50), seed=3)
    assert first != cluster_bootstrap(value, range(50), seed=4)
    monkeypatch.setattr("experiments.bootstrap._CHUNK_NUMBERS", 1000)
    assert first == cluster_bootstrap(value, range(50), seed=3)


def test_minimal_detectable_effect_is_found_as_often_as_said() -> None:
    generator = np.random.default_rng(0)
    noise = generator.normal(size=(2000, 100))
    effect = minimal_detectable_effect(noise[0] / noise[0].std(ddof=1), range(100))
    assert effect == pytest.approx(2.8 / 10, rel=0.01)
    samples = noise + effect
    t = samples.mean(1) / (samples.std(1, ddof=1) / 10)
    assert (np.abs(t) > 1.96).mean() == pytest.approx(0.8, abs=0.03)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="2 values, 1 clusters"):
        cluster_bootstrap([1.0, 2.0], ["a"])
    with pytest.raises(ValueError, match="no values"):
        cluster_bootstrap([], [])
    with pytest.raises(ValueError, match="1 values are not finite"):
        cluster_bootstrap([1.0, float("nan")], ["a", "b"])
