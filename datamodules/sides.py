"""SideDataModule: query sides for stage 1, whose workers must not see anything else."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import final

from typing_extensions import override

from datamodules.loaders import Chunk, FiniteLoader, ShardDataModule, by_shard, chunks_of
from datamodules.samples import Row, SampleReader
from datamodules.sidecars import RationaleTable
from datamodules.stream import Item
from mmemb.batches import PairRowBatch, SideBatch
from mmemb.records import Side


@final
class SideDataModule(ShardDataModule):
    """Sides to write about (`predict`), and what was written about training pairs (`test`).

    Args:
        root: the data set.
        folders: of pairs and queries below the root.
        batch_size: sides of a batch.
        parts: data parts to write about, or None for all. Rows of other parts travel as empty
            sides, which no worker can read: the sidecar keeps every key of its source.
        rationales: `test` reads this folder.
        decode: decode images, for workers that look at them.
        num_workers: processes that read ahead.
    """

    def __init__(
        self,
        root: str,
        folders: list[str],
        batch_size: int,
        parts: list[str] | None = None,
        rationales: str | None = None,
        decode: bool = False,
        num_workers: int = 0,
    ) -> None:
        super().__init__(root)
        self._folders, self._batch_size = folders, batch_size
        self._parts: Collection[str] | None = parts
        self._rationales, self._num_workers = rationales, num_workers
        self._reader = SampleReader(pixels=decode)

    @override
    def shard_rows(self) -> Mapping[str, Sequence[Row]]:
        return by_shard(self._rows)

    @override
    def predict_dataloader(self) -> FiniteLoader:
        chunks = self.predict_chunks(self._batch_size)
        return FiniteLoader(chunks, self._side_batch, self.place[1], self._num_workers)

    @override
    def test_dataloader(self) -> FiniteLoader:
        rank, world = self.place
        rows = [row for row in self._rows if self._is_wanted(row) and "group" in row.meta]
        chunks = chunks_of(by_shard(rows[rank::world]), self._batch_size)
        return FiniteLoader(chunks, self._pair_batch, world, self._num_workers)

    @cached_property
    def _rows(self) -> tuple[Row, ...]:
        return self.open_rows(self._folders)

    @cached_property
    def _table(self) -> RationaleTable:
        if self._rationales is None:
            raise ValueError("`test` reads what was written: set data.rationales to its folder.")
        return RationaleTable(self._rationales, {id(r.index): r.index for r in self._rows}.values())

    def _is_wanted(self, row: Row) -> bool:
        return self._parts is None or row.meta["part"] in self._parts

    def _side_batch(self, chunk: Chunk) -> Item:
        batch = SideBatch(
            shard=chunk.shard,
            keys=tuple(row.entry.key for row in chunk.rows),
            sides=tuple(self._side(row) for row in chunk.rows),
            metas=tuple(row.meta for row in chunk.rows),
        )
        return batch, ()

    def _side(self, row: Row) -> Side:
        return self._reader.query_side(row) if self._is_wanted(row) else Side()

    def _pair_batch(self, chunk: Chunk) -> Item:
        pairs = tuple(self._reader.pair(row) for row in chunk.rows)
        rationales = tuple(self._table.read(row) for row in chunk.rows)
        return PairRowBatch(chunk.shard, pairs, rationales), ()
