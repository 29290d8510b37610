"""Seeds of a row's draws: their number, and what they are made of (docs/method.md section 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, final, get_args

import torch
from torch import Tensor

from mmemb.rationales.writers.base import NO_DRAW
from mmemb.records.hashing import stable_hash
from mmemb.records.inputs import Side
from mmemb.records.rationales import GREEDY

SeedBy = Literal["key", "content"]


@final
@dataclass(frozen=True, slots=True)
class DrawSeeds:
    """Training rows get samples alone; others one greedy draw, and samples behind it.

    Attributes:
        seed: seed of the run.
        num_drafts: samples of a training row.
        num_test_draws: draws of any other row, the greedy one among them.
        seed_by: a sample's seed comes from the row's `key`, or from the `content` of its side:
            then equal sides have equal draws, in whatever row, shard or data set they stand.
    """

    seed: int
    num_drafts: int
    num_test_draws: int
    seed_by: SeedBy = "key"

    def __post_init__(self) -> None:
        if self.num_drafts < 1:
            raise ValueError(f"num_drafts {self.num_drafts}: expected 1 (greedy) or more")
        if self.seed_by not in get_args(SeedBy):
            raise ValueError(f"seed_by {self.seed_by!r}: expected one of {get_args(SeedBy)}.")

    def of_batch(
        self, keys: Sequence[str], sides: Sequence[Side], metas: Sequence[Mapping[str, str]]
    ) -> Tensor:
        """Returns the seeds of B rows, int64 (B, K), padded with `NO_DRAW`.

        Args:
            keys: keys of B rows.
            sides: sides of the same rows.
            metas: metadata of the same rows, with their `split`.
        """
        names = keys if self.seed_by == "key" else [side.digest for side in sides]
        rows = [self._of_row(n, meta["split"]) for n, meta in zip(names, metas, strict=True)]

        width = max(map(len, rows), default=0)
        return torch.tensor([row + [NO_DRAW] * (width - len(row)) for row in rows])

    def _of_row(self, name: str, split: str) -> list[int]:
        if split == "train":
            return [stable_hash(self.seed, name, k) for k in range(self.num_drafts)]

        # From 1: the greedy draw stands for number 0.
        sampled = [stable_hash(self.seed, name, k) for k in range(1, self.num_test_draws)]
        return [GREEDY, *sampled]
