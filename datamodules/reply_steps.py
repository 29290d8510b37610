"""The batch of a step for fine-tuning a generator: sides, and one rationale of each, drawn anew."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Literal, final

from torch.utils.data import Dataset

from datamodules.samples import Row, SampleReader
from datamodules.sidecars import RationaleTable
from datamodules.stream import Item
from mmemb.rationales.supervised import ReplyBatch
from mmemb.records.hashing import stable_hash
from mmemb.records.rationales import Rationale, ScoredRationale
from mmemb.training.batch_plan import BatchPlan, rank_slice

Use = Literal["kept", "all"]


@final
class ReplyPools:
    """The rationales that may be learned, by row: kept ones by weight, or all of them by count.

    Read once, at the start: which rows have any decides what a batch is made of.

    Args:
        table: the candidates.
        rows: rows that may be learned from.
        use: `kept` or `all`.
        writer: learn from the rationales of this writer alone; None = of every one.
    """

    def __init__(
        self, table: RationaleTable, rows: Sequence[Row], use: Use, writer: str | None
    ) -> None:
        pools = {row.entry.key: weighed(table.read(row), use, writer) for row in rows}
        self._shares = {key: shares for key, shares in pools.items() if shares}
        self.rows = tuple(row for row in rows if row.entry.key in self._shares)

    def draw(self, row: Row, seed: int, step: int) -> Rationale:
        """The rationale of a row at a step, equal for equal (seed, step, key)."""
        random = Random(stable_hash(seed, "reply", step, row.entry.key))
        # Not empty: rows without shares were left out when the pools were read.
        rationales, weights = zip(*self._shares[row.entry.key], strict=True)
        return random.choices(rationales, weights)[0]


@final
class ReplySteps(Dataset[Item]):
    """Step -> the part of the global batch that one rank learns from."""

    def __init__(
        self,
        pools: ReplyPools,
        plan: BatchPlan,
        reader: SampleReader,
        seed: int,
        place: tuple[int, int],
    ) -> None:
        self._pools, self._plan, self._reader = pools, plan, reader
        self._seed, self._place = seed, place

    def __getitem__(self, step: int) -> Item:
        positions = rank_slice(self._plan.positions(step), *self._place)
        rows = [self._pools.rows[position] for position in positions]
        batch = ReplyBatch(
            keys=tuple(row.entry.key for row in rows),
            sides=tuple(self._reader.query_side(row) for row in rows),
            rationales=tuple(self._pools.draw(row, self._seed, step) for row in rows),
            step=step,
        )
        return batch, ()


def weighed(
    pool: Sequence[ScoredRationale], use: Use, writer: str | None
) -> list[tuple[Rationale, float]]:
    """The rationales of a row that may be learned, with their weights in a draw."""
    shares = [
        (scored.rationale, scored.weight if use == "kept" else float(scored.rationale.count))
        for scored in pool
        if (scored.kept or use == "all") and writer in (None, scored.rationale.writer)
    ]

    # A weight of 0 is never drawn, and a row of such weights alone has nothing to learn.
    return [(rationale, weight) for rationale, weight in shares if weight > 0]
