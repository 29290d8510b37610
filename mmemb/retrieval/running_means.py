"""Means over all ranks, as sums and counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch

from mmemb.distributed import gather_objects, sum_over_ranks


@final
class MeanSums:
    """Means by name from sums and counts alone, so that ranks may hold unequal numbers of rows."""

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = {}

    def add(self, name: str, total: float, count: float = 1.0) -> None:
        """Adds `count` values whose sum is `total` (a weight is a count, too)."""
        entry = self._sums.setdefault(name, [0.0, 0.0])
        entry[0] += float(total)
        entry[1] += float(count)

    def add_all(self, values: Mapping[str, float], prefix: str = "") -> None:
        """Adds one value of each name."""
        for name, value in values.items():
            self.add(prefix + name, value)

    def compute(self) -> dict[str, float]:
        """The means over all ranks; runs on every rank, whatever names it holds.

        >>> sums = MeanSums()
        >>> sums.add("recall@1", 3, 4)
        >>> sums.compute()
        {'recall@1': 0.75}
        """
        names = sorted(set(gather_objects(list(self._sums))))
        rows = [self._sums.get(name, [0.0, 0.0]) for name in names]
        local_N2 = torch.tensor(rows, dtype=torch.float64).reshape(-1, 2)
        total_N2 = sum_over_ranks(local_N2).tolist()
        return {n: s / c for n, (s, c) in zip(names, total_N2, strict=True) if c}

    def reset(self) -> None:
        """Forgets everything, for the next epoch."""
        self._sums.clear()
