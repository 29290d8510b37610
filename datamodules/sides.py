"""SideDataModule: one side of each row for stage 1, whose writers must not see anything else.

See docs/method.md sections 3 and 4.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Literal, final, get_args

from typing_extensions import override

from datamodules.asked import AskedSides, AskedTasks, AskedWhere, meta_of, split_of
from datamodules.loaders import Chunk, FiniteLoader, ShardDataModule, by_shard, chunks_of
from datamodules.reply_steps import ReplyPools, ReplySteps, Use
from datamodules.samples import FeatureTable, Row, SampleReader
from datamodules.sidecars import RationaleTable
from datamodules.stream import Item, StepStream
from mmemb.records.batches import PairRowBatch, SideBatch
from mmemb.records.inputs import Side
from mmemb.records.row_marks import NOT_ASKED


@final
class SideDataModule(ShardDataModule):
    """Sides to write about (`predict`), and what was written about training pairs (`test`, `fit`).

    `fit` is an endless stream (`limit_train_batches` is the epoch) of training pairs' sides with
    one rationale each, drawn anew at every step.

    Args:
        root: the data set.
        folders: folders of pairs and queries below the root.
        batch_size: sides of a batch; in `fit` of the global batch, over all ranks.
        splits: splits to write about, or None for all. Rows of other splits travel as empty
            sides that no writer can read, and are marked: the sidecar has every key of its source.
        tasks: tasks of the queries to write about; None = all. Pairs are written about in any case.
            With `side: target` of pairs, and of the candidates that such tasks rank.
        rationales: `test` and `fit` read this folder.
        decode: decode images, for writers that look at them.
        features: folder of cached features, for writers that look at those instead.
        num_workers: processes that read ahead.
        use: `fit` learns the `kept` rationales, drawn by the selector's weight, or `all` of them,
            drawn by count.
        writer: `fit` learns from the rationales of this writer alone; None = of every one.
        fold: `a` or `b`: `fit` learns from this half of the train concepts alone, so that the
            other half can be written about.
        seed: seed of order and draws of `fit`.
        side: `query`, or `target`: the targets of pairs, and the rows of `candidates` (folders of
            queries have none). The two share their shard names, so each needs a sidecar of its own.
        sides: for each task the side that is written about, `query`, `target`, `both` or `none`;
            of tasks that it does not name `both`. It holds for pairs, queries and candidates, so
            one mapping serves the run over queries and the one over targets.
    """

    def __init__(
        self,
        root: str,
        folders: list[str],
        batch_size: int,
        splits: list[str] | None = None,
        tasks: list[str] | None = None,
        rationales: str | None = None,
        decode: bool = False,
        features: str | None = None,
        num_workers: int = 0,
        use: Use = "kept",
        writer: str | None = None,
        fold: Literal["a", "b"] | None = None,
        seed: int = 0,
        side: AskedWhere = "query",
        sides: dict[str, AskedSides] | None = None,
    ) -> None:
        super().__init__(root)
        if use not in get_args(Use):
            raise ValueError(f"use {use!r}: expected one of {', '.join(get_args(Use))}.")

        self._folders, self._batch_size = folders, batch_size
        self._splits: Collection[str] | None = splits
        self._rationales, self._num_workers = rationales, num_workers

        self._use, self._writer, self._fold, self._seed = use, writer, fold, seed
        self._decode, self._features = decode, features
        self._asked = AskedTasks(self.root, side, tasks, sides or {})

    @override
    def shard_rows(self) -> Mapping[str, Sequence[Row]]:
        return by_shard(self._rows)

    @override
    def train_dataloader(self) -> StepStream:
        if self._asked.side != "query":
            raise ValueError(
                f"data.side is {self._asked.side!r}, but `fit` teaches a writer to write about "
                "queries, as the test asks it to: set data.side to query."
            )

        # Without meta all rows are of one group: no loss contrasts them.
        entries = [replace(row.entry, meta={}) for row in self._pools.rows]
        plan = self.batch_plan(entries, self._batch_size, self._seed)
        reader = SampleReader(pixels=self._decode)
        steps = ReplySteps(self._pools, plan, reader, self._seed, self.place)
        return self.stream(steps, self._num_workers)

    @override
    def batches_of_a_pass(self) -> int:
        return max(1, len(self._pools.rows) // self._batch_size)

    @property
    @override
    def trained_facts(self) -> frozenset[str]:
        return frozenset(row.meta["fact"] for row in self._pools.rows)

    @override
    def predict_dataloader(self) -> FiniteLoader:
        chunks = self.predict_chunks(self._batch_size)
        return FiniteLoader(chunks, self._side_batch, self.place[1], self._num_workers)

    @override
    def test_dataloader(self) -> FiniteLoader:
        # Only pairs have a group: `test` reads pairs alone.
        rank, world = self.place
        rows = [row for row in self._rows if self._is_wanted(row) and "source" in row.meta]
        chunks = chunks_of(by_shard(rows[rank::world]), self._batch_size)
        return FiniteLoader(chunks, self._pair_batch, world, self._num_workers)

    @cached_property
    def _rows(self) -> tuple[Row, ...]:
        rows = self.open_rows(self._folders)
        self._asked.check(rows, self._folders)
        return rows

    @cached_property
    def _pools(self) -> ReplyPools:
        # Split train alone is learned from, so that no fact of the other splits is fitted.
        folds = ("a", "b", "") if self._fold is None else (self._fold, "")
        pairs = [row for row in self._rows if "source" in row.meta and row.meta["split"] == "train"]
        rows = [row for row in pairs if row.meta.get("fold", "") in folds]

        pools = ReplyPools(self._table, rows, self._use, self._writer)
        if not pools.rows:
            of_whom = f" of {self._writer}" if self._writer else ""
            raise ValueError(
                f"{self._rationales} holds no {self._use} rationale{of_whom} about the "
                f"{len(rows)} train pairs of {self._folders}, so there is nothing to learn. `kept` "
                "needs what the selector wrote (`selected`); `use: all` takes any candidates."
            )

        return pools

    @cached_property
    def _table(self) -> RationaleTable:
        if self._rationales is None:
            raise ValueError(
                "`test` and `fit` read what was written: set data.rationales to its folder."
            )
        return RationaleTable(self._rationales, {id(r.index): r.index for r in self._rows}.values())

    @cached_property
    def _reader(self) -> SampleReader:
        table = FeatureTable(self._features) if self._features else None
        return SampleReader(table, pixels=self._decode)

    def _is_wanted(self, row: Row) -> bool:
        # Candidates belong to no split and are written about for every one.
        of_split = self._splits is None or split_of(row) in {None, *self._splits}
        return of_split and self._asked.includes(row)

    def _side_batch(self, chunk: Chunk) -> Item:
        batch = SideBatch(
            shard=chunk.shard,
            keys=tuple(row.entry.key for row in chunk.rows),
            sides=tuple(self._side(row) for row in chunk.rows),
            metas=tuple(self._meta(row) for row in chunk.rows),
        )
        return batch, ()

    def _side(self, row: Row) -> Side:
        # A row that is not asked about keeps its place, as an empty side.
        return self._asked.read(self._reader, row) if self._is_wanted(row) else Side()

    def _meta(self, row: Row) -> Mapping[str, str]:
        """Meta of a row; the mark tells a row that was not asked about from an empty one."""
        return meta_of(row) if self._is_wanted(row) else {**meta_of(row), **NOT_ASKED}

    def _pair_batch(self, chunk: Chunk) -> Item:
        pairs = tuple(self._reader.pair(row) for row in chunk.rows)
        rationales = tuple(self._table.read(row) for row in chunk.rows)
        return PairRowBatch(chunk.shard, pairs, rationales), ()
