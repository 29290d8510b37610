"""Coverage of the cluster bootstrap where the truth is planted: how often an interval holds it.

Shapes: G clusters, N values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from experiments.bootstrap import MIN_CLUSTERS, cluster_bootstrap

Floats = NDArray[np.float64]

_SIZE_RATE = 0.3
"""Cluster sizes are geometric: 3.3 queries on average, most have one or two, a few have a dozen."""


@final
@dataclass(frozen=True, slots=True)
class Sample:
    """Values as they are given to the bootstrap, and what their mean estimates."""

    value_N: Floats
    cluster_N: NDArray[np.int64]
    truth: float
    task_N: NDArray[np.int64] | None = None


def unequal_sizes(num_clusters: int, generator: np.random.Generator) -> Sample:
    """Draws clusters of unequal size, the larger the better: the mean is a ratio of two sums."""
    size_G = generator.geometric(_SIZE_RATE, num_clusters)
    effect_G = 0.1 * size_G + generator.normal(size=num_clusters)
    cluster_N = np.repeat(np.arange(num_clusters), size_G)

    value_N = effect_G[cluster_N] + generator.normal(size=len(cluster_N))

    # E[size * effect] / E[size], since each cluster counts by its size.
    return Sample(value_N, cluster_N, truth=0.1 * (2 - _SIZE_RATE) / _SIZE_RATE)


def mean_over_tasks(num_clusters: int, generator: np.random.Generator) -> Sample:
    """Draws three tasks of 60, 30 and 10 % of the queries, weighed alike, with shared concepts."""
    cluster_N = _clusters(num_clusters, generator)
    task_N = generator.choice(3, len(cluster_N), p=[0.6, 0.3, 0.1])
    effect_N = generator.normal(size=num_clusters)[cluster_N]
    value_N = np.array([0.0, 1.0, 3.0])[task_N] + effect_N + generator.normal(size=len(cluster_N))

    # The plain mean of the tasks' levels 0, 1 and 3.
    return Sample(value_N, cluster_N, truth=4 / 3, task_N=task_N)


def skewed(num_clusters: int, generator: np.random.Generator) -> Sample:
    """Draws exponential effects of clusters: skewness 2."""
    cluster_N = _clusters(num_clusters, generator)
    effect_N = generator.exponential(size=num_clusters)[cluster_N]
    return Sample(effect_N + generator.normal(size=len(cluster_N)), cluster_N, truth=1.0)


def heavy_tailed(num_clusters: int, generator: np.random.Generator) -> Sample:
    """Draws lognormal effects of clusters: skewness 6, a stress test."""
    cluster_N = _clusters(num_clusters, generator)
    effect_N = generator.lognormal(size=num_clusters)[cluster_N]
    value_N = effect_N + generator.normal(size=len(cluster_N))
    return Sample(value_N, cluster_N, truth=float(np.exp(0.5)))


def paired_hits(num_clusters: int, generator: np.random.Generator) -> Sample:
    """Draws hits of two systems on the same queries, 0 or 1 each, as in a paired Recall@1."""
    cluster_N = _clusters(num_clusters, generator)

    ease_N = generator.normal(size=num_clusters)[cluster_N] + generator.normal(size=len(cluster_N))
    own_2N = 0.5 * generator.normal(size=(2, len(cluster_N)))
    left_N, right_N = ease_N + own_2N + np.array([[0.4], [0.2]]) > 0

    normal = NormalDist(sigma=1.5)  # of ease and system's own noise together

    # Both read the same ease, so the difference varies less than either side.
    value_N = left_N.astype(float) - right_N
    return Sample(value_N, cluster_N, truth=normal.cdf(0.4) - normal.cdf(0.2))


Design = Callable[[int, np.random.Generator], Sample]
DESIGNS: dict[str, Design] = {
    "unequal sizes": unequal_sizes,
    "mean over tasks": mean_over_tasks,
    "skewed": skewed,
    "paired hits": paired_hits,
    "heavy-tailed": heavy_tailed,
}
NUM_CLUSTERS = (40, 100, 400)


def coverage(
    design: Design,
    num_clusters: int,
    num_samples: int,
    *,
    num_resamples: int = 500,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Measures how often the interval of `cluster_bootstrap` holds the truth.

    Args:
        design: draws a sample with its truth.
        num_clusters: G.
        num_samples: how many samples are drawn, at least 1.
        num_resamples: of each bootstrap.
        level: nominal.
        seed: of the samples; the bootstrap of a sample is seeded by its number.

    Returns:
        `coverage` with `low` and `high` (Wilson, 95 %); `below` and `above`, the shares of
        intervals that lie wholly below and above the truth; and `width`, the mean one.
    """
    if num_samples < 1:
        raise ValueError(f"coverage over {num_samples} samples: expected at least 1")

    if num_clusters < MIN_CLUSTERS:
        raise ValueError(
            f"coverage with {num_clusters} clusters: below {MIN_CLUSTERS} there is no interval"
        )

    generator = np.random.default_rng([seed, num_clusters])
    bounds, truths = [], []
    for number in range(num_samples):
        sample = design(num_clusters, generator)

        tasks = None if sample.task_N is None else sample.task_N.tolist()
        clusters = sample.cluster_N.tolist()

        interval = cluster_bootstrap(
            sample.value_N,
            clusters,
            tasks=tasks,
            num_resamples=num_resamples,
            level=level,
            seed=number,
        )

        bounds.append((interval.low, interval.high))
        truths.append(sample.truth)

    low_M, high_M = np.array(bounds).T
    below, above = float(np.mean(high_M < truths)), float(np.mean(low_M > truths))

    low, high = wilson(1 - below - above, num_samples)
    return {
        "coverage": 1 - below - above,
        "low": low,
        "high": high,
        "below": below,
        "above": above,
        "width": float(np.mean(high_M - low_M)),
    }


def wilson(share: float, num: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share of `num` independent trials.

    >>> low, high = wilson(0.5, 100)
    >>> round(low, 3), round(high, 3)
    (0.404, 0.596)
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    centre = (share + z**2 / (2 * num)) / (1 + z**2 / num)
    half = z / (1 + z**2 / num) * np.sqrt(share * (1 - share) / num + z**2 / (4 * num**2))
    return float(centre - half), float(centre + half)


def _clusters(num_clusters: int, generator: np.random.Generator) -> NDArray[np.int64]:
    size_G = generator.geometric(_SIZE_RATE, num_clusters)
    return np.repeat(np.arange(num_clusters), size_G)
