"""EvaluationDataModule: the candidate table and the queries of the benchmark."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import final

from torch import Tensor
from typing_extensions import override

from datamodules.data_roots import CANDIDATES, QUERIES, read_tasks
from datamodules.decode import OnError
from datamodules.limits import Limit, num_batches
from datamodules.loaders import (
    Chunk,
    FiniteLoader,
    ShardDataModule,
    by_shard,
    chunks_of,
    read_rows,
)
from datamodules.samples import FeatureTable, Row, SampleReader, rows_of
from datamodules.sidecars import RationaleTable
from datamodules.stream import Item
from mmemb.records.batches import CandidateBatch, QueryBatch, RankingBatch
from mmemb.records.pairs import SPLITS, Query
from mmemb.records.rationales import Rationale
from mmemb.storage.manifests import Origin
from mmemb.storage.shard_index import ShardIndex


def has_queries(root: Path) -> bool:
    """False for a data set of training rows alone, which has nothing to evaluate on."""
    return (root / QUERIES).is_dir()


@final
class EvaluationRows:
    """Queries and candidates of a root, and the loaders over them.

    Args:
        root: holds `tasks.json`, `queries/` and `candidates/`.
        batch_size: rows of a batch.
        rationales: folder of the queries' rationales, or None.
        features: folder of cached features; then no image is read.
        on_error: `raise`, or `skip`: leave out a sample that cannot be decoded.
        num_workers: processes that read ahead.
    """

    def __init__(
        self,
        root: Path,
        batch_size: int,
        rationales: str | None = None,
        features: str | None = None,
        on_error: OnError = "raise",
        num_workers: int = 0,
    ) -> None:
        self.tasks = read_tasks(root)
        self._task_of = {task.name: task for task in self.tasks}

        # A table may have rows to train on alone, which is no fault before something is ranked.
        if not has_queries(root):
            raise FileNotFoundError(
                f"{root} holds no queries: its table had rows of split train alone, or preparing "
                "it did not end. Add rows of other splits, or run `python -m datamodules.prepare` "
                "again."
            )

        self.query_index = ShardIndex.open(root / QUERIES)
        self.gallery_index = ShardIndex.open(root / CANDIDATES)
        self.queries, self.candidates = rows_of(self.query_index), rows_of(self.gallery_index)

        self._batch_size, self._num_workers = batch_size, num_workers
        self._reader = SampleReader(FeatureTable(features) if features else None)
        self._table = None

        # Without a query there is no source that the rationales could be joined with.
        if rationales and self.queries:
            self._table = RationaleTable(rationales, [self.queries[0].index])
        self._on_error = on_error

    def origins(self, shard: str) -> tuple[Origin, ...]:
        """Origins of all candidates, and of a shard's rationales if they are read."""
        written = self._table.origins(shard) if self._table else ()
        return (self.gallery_index.origin(), *written)

    def select(
        self, splits: Collection[str] | None, tasks: Collection[str] | None = None
    ) -> tuple[Row, ...]:
        """The queries of some splits and tasks; None takes all.

        Raises:
            ValueError: a split or task that the benchmark does not have.
        """
        if splits is not None and (unknown := sorted(set(splits) - set(SPLITS))):
            raise ValueError(f"Unknown split(s) {unknown}; expected some of {list(SPLITS)}.")
        if tasks is not None and (unknown := sorted(set(tasks) - set(self._task_of))):
            raise ValueError(f"Unknown task(s) {unknown}; tasks.json has {sorted(self._task_of)}.")

        return tuple(
            row
            for row in self.queries
            if (splits is None or row.meta["split"] in splits)
            and (row.meta["task"] in tasks if tasks is not None else True)
        )

    def loaders(
        self,
        queries: Sequence[Row],
        rank: int,
        world: int,
        *,
        whole_galleries: bool = False,
        limit: Limit = 1.0,
    ) -> list[FiniteLoader]:
        """[candidates, queries]: rank r takes every W-th row of both, so lengths may differ.

        Args:
            queries: those that are asked for.
            rank: of this process.
            world: number of ranks.
            whole_galleries: every rank gets all candidates, for a gate that looks at scores.
            limit: on the query batches of a rank; all candidates that the queries which are left
                are ranked among are read.
        """
        shares = self.query_chunks(queries, world, limit)

        # Of all ranks: a query is ranked among candidates that another rank embeds.
        kept = [row for chunks in shares for chunk in chunks for row in chunk.rows]
        candidates = self._in_galleries({row.meta["gallery"] for row in kept})
        candidates = candidates if whole_galleries else candidates[rank::world]

        return [self._candidate_loader(candidates, world), self.query_loader(shares[rank], world)]

    def query_chunks(self, queries: Sequence[Row], world: int, limit: Limit) -> list[list[Chunk]]:
        """The query batches of every rank; a fraction is one of the longest rank's batches, so
        that all ranks agree."""
        shares = [
            chunks_of(by_shard(queries[rank::world]), self._batch_size) for rank in range(world)
        ]
        count = num_batches(
            max(map(len, shares)), limit, "limit_val_batches, limit_test_batches or overfit_batches"
        )
        return [chunks[:count] for chunks in shares]

    def predict_loaders(self, chunks: Sequence[Chunk], world: int) -> list[FiniteLoader]:
        """[candidates, queries]: all candidates on every rank, and whole shards of queries.

        Ranks have different shards to fill, so no rank may wait for another's candidates.
        """
        galleries = {row.meta["gallery"] for chunk in chunks for row in chunk.rows}
        candidates = self._in_galleries(galleries)
        return [self._candidate_loader(candidates, world), self.query_loader(chunks, world)]

    def all_candidates(self, world: int = 1) -> FiniteLoader:
        """Loads the whole candidate table on every rank, for mining negatives in it."""
        return self._candidate_loader(self.candidates, world)

    def query_loader(self, chunks: Sequence[Chunk], world: int = 1) -> FiniteLoader:
        """Queries with their rationales."""
        return FiniteLoader(chunks, self._query_batch, world, self._num_workers)

    def _candidate_loader(self, rows: Sequence[Row], world: int) -> FiniteLoader:
        # One name for all shards, since candidates are ranked and not written shard by shard.
        chunks = chunks_of({CANDIDATES: rows}, self._batch_size)
        return FiniteLoader(chunks, self._candidate_batch, world, self._num_workers)

    def _in_galleries(self, galleries: Collection[str]) -> tuple[Row, ...]:
        return tuple(row for row in self.candidates if row.meta["gallery"] in galleries)

    def _candidate_batch(self, chunk: Chunk) -> Item:
        _, records, problems = read_rows(chunk.rows, self._reader.candidate, self._on_error)
        if not records:
            return None, problems
        candidates = CandidateBatch(tuple(records), self._sizes_of(chunk))
        return RankingBatch(candidates=candidates), problems

    def _sizes_of(self, chunk: Chunk) -> Mapping[str, int]:
        """Size of each gallery of a chunk; not known where broken candidates are skipped."""
        # A gallery that lost a candidate would never reach its stated size.
        if self._on_error == "skip":
            return {}
        galleries = sorted({row.meta["gallery"] for row in chunk.rows})
        return {gallery: self._sizes[gallery] for gallery in galleries}

    @cached_property
    def _sizes(self) -> Mapping[str, int]:
        return Counter(row.meta["gallery"] for row in self.candidates)

    def _query_batch(self, chunk: Chunk) -> Item:
        _, records, problems = read_rows(chunk.rows, self._query, self._on_error)
        if not records:
            return None, problems
        queries = QueryBatch(chunk.shard, *zip(*records, strict=True))
        return RankingBatch(queries=queries), problems

    def _query(self, row: Row) -> tuple[Query, tuple[Rationale, ...], Tensor | None]:
        query = self.read_query(row)
        if self._table is None:
            return query, (), None
        return query, self._table.read_rationales(row), self._table.read_prompt_state(row)

    def read_query(self, row: Row) -> Query:
        """Reads a query and adds its gallery, and whether its answer may have been seen."""
        task = self._task_of.get(row.meta["task"])
        if task is None:
            raise ValueError(
                f"{row.where} belongs to task {row.meta['task']!r}, which tasks.json lacks (it has "
                f"{sorted(self._task_of)}); prepare the data again."
            )

        # The sample lacks both: the gallery stands in the index, the mark in tasks.json.
        query = self._reader.query(row)
        return replace(query, gallery=row.meta["gallery"], seen_answer=task.seen_answer)


@final
class EvaluationDataModule(ShardDataModule):
    """Candidates and queries for `validate`, `test` and `predict`, each as two loaders.

    `validate` and `test` read the stated splits and tasks, every query on one rank. `predict` reads
    the whole of each shard that holds one of these, since a sidecar shard has a row for every query
    of its source's shard.

    Args:
        root: the data set.
        batch_size: rows of a batch.
        splits: splits, e.g. `[test]`; None for all.
        rationales: folder of the queries' rationales, or None.
        features: folder of cached features, or None to decode images.
        tasks: names of tasks, or None for all.
        on_error: `raise`, or `skip` with a warning that counts and names the samples.
        num_workers: processes that read ahead.
    """

    def __init__(
        self,
        root: str,
        batch_size: int,
        splits: list[str] | None = None,
        rationales: str | None = None,
        features: str | None = None,
        tasks: list[str] | None = None,
        on_error: OnError = "raise",
        num_workers: int = 0,
    ) -> None:
        super().__init__(root)
        self._batch_size, self._splits, self._tasks = batch_size, splits, tasks
        self._on_error, self._reading = on_error, (rationales, features, on_error, num_workers)

    @cached_property
    def _data(self) -> EvaluationRows:
        return EvaluationRows(self.root, self._batch_size, *self._reading)

    @override
    def shard_rows(self) -> Mapping[str, Sequence[Row]]:
        # Whole shards, since a sidecar has a row for every query of its source's shard.
        shards = {row.entry.shard for row in self._data.select(self._splits, self._tasks)}
        return by_shard(row for row in self._data.queries if row.entry.shard in shards)

    @override
    def joined_origins(self, shard: str) -> tuple[Origin, ...]:
        return self._data.origins(shard)

    @override
    def val_dataloader(self) -> list[FiniteLoader]:
        return self._loaders(self.take_limit("val"))

    @override
    def test_dataloader(self) -> list[FiniteLoader]:
        return self._loaders(self.take_limit("test"))

    def _loaders(self, limit: Limit) -> list[FiniteLoader]:
        queries = self._data.select(self._splits, self._tasks)
        return self._data.loaders(queries, *self.place, limit=limit)

    @override
    def predict_dataloader(self) -> list[FiniteLoader]:
        if self._on_error != "raise":
            raise ValueError(
                f"on_error {self._on_error!r}: a sidecar has a row for every query of a shard, so "
                "`predict` can skip none. Repair the broken sample, or prepare the data again."
            )
        chunks = self.predict_chunks(self._batch_size)
        return self._data.predict_loaders(chunks, self.place[1])
