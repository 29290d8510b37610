"""Bootstrap intervals whose clusters are concepts, for means and paired differences.

See docs/method.md section 8.

Shapes: S seeds, N queries, G clusters, T tasks, R resamples.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

NON_INFERIORITY_MARGIN = 0.02
"""Two points: non-inferior means a lower bound above minus this."""

MIN_CLUSTERS = 5
"""Fewest clusters for an interval: the resamples of one cluster are all the same."""

FEW_CLUSTERS = 30
"""Below this number intervals are somewhat too narrow, so the number is shown beside them."""

_CHUNK_NUMBERS = 2**22


@final
@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with the bounds of its confidence interval, and how many clusters it rests on.

    Attributes:
        mean: the mean.
        low: lower bound; None where there are too few clusters for an interval.
        high: upper bound, likewise.
        clusters: how many were drawn from; None where an interval does not come from clusters.

    >>> print(Interval(0.123, 0.05, 0.2, clusters=80))
    0.123 [0.050, 0.200]
    >>> print(Interval(0.123, 0.05, 0.2, clusters=12))
    0.123 [0.050, 0.200] (12 clusters)
    >>> print(Interval(0.123, None, None, clusters=3))
    0.123 [no interval: 3 clusters]
    """

    mean: float
    low: float | None
    high: float | None
    clusters: int | None = None

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Interval:
        """Reads the interval from a row of a report."""
        return cls(row["mean"], row["low"], row["high"], row.get("clusters"))

    @property
    def excludes_zero(self) -> bool:
        """True if a difference is not 0 at this level of confidence."""
        return self.is_above(0) or self.is_below(0)

    def is_above(self, bound: float) -> bool:
        """True if the whole interval lies above a bound; False without an interval."""
        return self.low is not None and self.low > bound

    def is_below(self, bound: float) -> bool:
        """True if the whole interval lies below a bound; False without an interval."""
        return self.high is not None and self.high < bound

    def non_inferior(self, margin: float = NON_INFERIORITY_MARGIN) -> bool:
        """True if the whole interval of a difference lies above `-margin`."""
        return self.is_above(-margin)

    def bounds(self, scale: float = 1.0, digits: int = 3) -> str:
        """Formats the bounds: the only form in which reports show them, with the clusters if few.

        >>> Interval(0.1, 0.05, 0.2, clusters=12).bounds(100, 1)
        '[5.0, 20.0] (12 clusters)'
        """
        if self.low is None or self.high is None:
            return f"[no interval: {_counted(self.clusters)}]"

        # A reader has to see beside the interval that it is somewhat too narrow.
        shown = f"[{scale * self.low:.{digits}f}, {scale * self.high:.{digits}f}]"
        is_small = self.clusters is not None and self.clusters < FEW_CLUSTERS
        return f"{shown} ({_counted(self.clusters)})" if is_small else shown

    def text(self, scale: float = 1.0, digits: int = 3, sign: str = "") -> str:
        """Formats mean and bounds; with `sign` "+" the mean's sign is always shown.

        >>> Interval(0.1, 0.05, 0.2).text(100, 1)
        '10.0 [5.0, 20.0]'
        """
        return f"{scale * self.mean:{sign}.{digits}f} {self.bounds(scale, digits)}"

    def __str__(self) -> str:
        return self.text()


def _counted(clusters: int | None) -> str:
    return "1 cluster" if clusters == 1 else f"{clusters} clusters"


def cluster_bootstrap(
    value: ArrayLike,
    clusters: Sequence[Hashable],
    *,
    tasks: Sequence[Hashable] | None = None,
    num_resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Mean with percentile interval; whole clusters are drawn, with everything in them.

    Below `MIN_CLUSTERS` clusters there is a mean and no interval.

    Args:
        value: (N,) values, or (S, N) of several seeds, which are averaged first. Pass differences
            for a paired comparison.
        clusters: N concepts.
        tasks: N task names: the mean over tasks of their means; None pools all queries.
        num_resamples: resamples.
        level: of confidence.
        seed: of the resampling; equal arguments give an equal interval.

    Raises:
        ValueError: no values, some that are not finite, or columns of unequal length.
    """
    sums_GT, counts_GT = _cluster_sums(value, clusters, tasks)

    mean = float(np.mean(sums_GT.sum(0) / counts_GT.sum(0)))
    if len(sums_GT) < MIN_CLUSTERS:
        return Interval(mean, None, None, len(sums_GT))

    draws_R = _resampled_means(sums_GT, counts_GT, num_resamples, seed)
    low, high = np.quantile(draws_R, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high), len(sums_GT))


def share_without_exception(share: float, num_clusters: int, level: float = 0.95) -> Interval:
    """Interval of a share that is 0 or 1 in every cluster (Clopper and Pearson 1934).

    Resamples of equal values are equal, so a bootstrap would take 0 hits in 30 queries for
    certainty.

    Args:
        share: 0.0 or 1.0.
        num_clusters: that all have it.
        level: of confidence.

    >>> print(share_without_exception(0.0, 32))
    0.000 [0.000, 0.109]
    """
    if num_clusters < MIN_CLUSTERS:
        return Interval(share, None, None, num_clusters)

    distance = 1 - ((1 - level) / 2) ** (1 / num_clusters)
    low, high = (0.0, distance) if share == 0 else (1 - distance, 1.0)
    return Interval(share, low, high, num_clusters)


def paired_bootstrap(
    left: ArrayLike,
    right: ArrayLike,
    clusters: Sequence[Hashable],
    *,
    tasks: Sequence[Hashable] | None = None,
    num_resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """`cluster_bootstrap` of left minus right, query by query: both (N,) or (S, N).

    Raises:
        ValueError: as there.
    """
    difference_N = _seed_mean(left) - _seed_mean(right)
    return cluster_bootstrap(
        difference_N,
        clusters,
        tasks=tasks,
        num_resamples=num_resamples,
        level=level,
        seed=seed,
    )


def seed_spread(value_SN: ArrayLike) -> float:
    """Standard deviation over seeds of their means; NaN for a single seed.

    >>> seed_spread([[0.0, 0.0], [1.0, 1.0]])
    0.7071067811865476
    """
    values = np.atleast_2d(np.asarray(value_SN, dtype=np.float64))
    return float(values.mean(1).std(ddof=1)) if len(values) > 1 else float("nan")


def cluster_standard_error(
    value: ArrayLike,
    clusters: Sequence[Hashable],
    *,
    tasks: Sequence[Hashable] | None = None,
) -> float:
    """Closed-form standard error of the mean (linearised ratio), the bootstrap's check."""
    sums_GT, counts_GT = _cluster_sums(value, clusters, tasks)

    # A mean of one task is a ratio of two random sums, so its residuals are taken around the ratio.
    counts_T = counts_GT.sum(0)
    residual_GT = (sums_GT - counts_GT * (sums_GT.sum(0) / counts_T)) / counts_T

    num = len(sums_GT)
    if num < 2:
        return float("nan")

    return float(np.sqrt(num / (num - 1) * (residual_GT.mean(1) ** 2).sum()))


def minimal_detectable_effect(
    difference: ArrayLike,
    clusters: Sequence[Hashable],
    *,
    tasks: Sequence[Hashable] | None = None,
    alpha: float = 0.05,
    power: float = 0.8,
) -> float | None:
    """The true difference that a two-sided test at `alpha` would find with this power.

    A null result states it: effects below it were out of reach of this many concepts. None below
    `MIN_CLUSTERS` clusters.
    """
    if len(set(clusters)) < MIN_CLUSTERS:
        return None

    # A two-sided test needs the quantile of alpha / 2, and the power adds its own on one side.
    normal = NormalDist()
    quantiles = normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(power)
    return quantiles * cluster_standard_error(difference, clusters, tasks=tasks)


def _seed_mean(value: ArrayLike) -> Floats:
    values = np.asarray(value, dtype=np.float64)
    return values.mean(0) if values.ndim == 2 else values


def _cluster_sums(
    value: ArrayLike, clusters: Sequence[Hashable], tasks: Sequence[Hashable] | None
) -> tuple[Floats, Floats]:
    """Sums and numbers of values per cluster and task, (G, T) each."""
    value_N = _seed_mean(value)
    cluster_N, num_clusters = _numbered(clusters)
    task_N, num_tasks = _numbered(tasks if tasks is not None else [None] * len(value_N))

    if not len(value_N) == len(cluster_N) == len(task_N):
        raise ValueError(
            f"{len(value_N)} values, {len(cluster_N)} clusters and {len(task_N)} tasks: give one "
            "cluster and one task for each value"
        )

    if not len(value_N):
        raise ValueError("no values: an interval needs at least one query")

    if not np.isfinite(value_N).all():
        raise ValueError(f"{int((~np.isfinite(value_N)).sum())} values are not finite")

    # `add.at` counts every query of a cell; an indexed += would count a repeated cell once.
    sums_GT, counts_GT = np.zeros((2, num_clusters, num_tasks))
    np.add.at(sums_GT, (cluster_N, task_N), value_N)
    np.add.at(counts_GT, (cluster_N, task_N), 1.0)
    return sums_GT, counts_GT


def _numbered(names: Sequence[Hashable]) -> tuple[NDArray[np.int64], int]:
    numbers: dict[Hashable, int] = {}
    rows = [numbers.setdefault(name, len(numbers)) for name in names]
    return np.asarray(rows, dtype=np.int64), len(numbers)


def _times_drawn(num_clusters: int, num: int, seed: int) -> Iterable[Floats]:
    """Counts of each cluster in each resample, (R, G), in chunks that fit into memory."""
    if num * num_clusters <= _CHUNK_NUMBERS:
        return [_kept_times(num_clusters, num, seed)]

    generator, step = np.random.default_rng(seed), max(1, _CHUNK_NUMBERS // num_clusters)
    sizes = (min(step, num - start) for start in range(0, num, step))
    return (_multinomial(generator, num_clusters, size) for size in sizes)


@lru_cache(maxsize=4)
def _kept_times(num_clusters: int, num: int, seed: int) -> Floats:
    """Keeps the draws: a report needs hundreds of intervals over the same concepts."""
    return _multinomial(np.random.default_rng(seed), num_clusters, num)


def _multinomial(generator: np.random.Generator, num_clusters: int, num: int) -> Floats:
    # As many clusters are drawn as there are, with replacement.
    shares = np.full(num_clusters, 1 / num_clusters)
    return generator.multinomial(num_clusters, shares, size=num).astype(np.float64)


def _resampled_means(sums_GT: Floats, counts_GT: Floats, num: int, seed: int) -> Floats:
    means = []
    for times_RG in _times_drawn(len(sums_GT), num, seed):
        total_RT, count_RT = times_RG @ sums_GT, times_RG @ counts_GT
        # A task none of whose concepts was drawn is left out of that resample's mean.
        drawn_RT = count_RT > 0

        mean_RT = np.divide(total_RT, count_RT, out=np.zeros_like(total_RT), where=drawn_RT)
        means.append(mean_RT.sum(1) / drawn_RT.sum(1))
    return np.concatenate(means)
