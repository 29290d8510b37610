"""BenchmarkDataModule: many data roots, one after the other, for `test`."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import final

from typing_extensions import override

from datamodules.data_roots import (
    CANDIDATES,
    QUERIES,
    content_of,
    read_tasks,
    revision_and_losses,
    roots_below,
)
from datamodules.decode import OnError
from datamodules.evaluation import EvaluationRows
from datamodules.limits import Limit
from datamodules.loaders import FiniteLoader, ShardDataModule
from datamodules.samples import Row
from mmemb.records.batches import RankingBatch, TaskEnd


@final
class BenchmarkDataModule(ShardDataModule):
    """The queries and candidates of a benchmark, root by root: candidates, queries, `TaskEnd`.

    Args:
        root: a data root, or a folder of such, e.g. `data/mmeb_v2` with `image/ImageNet-1K`.
        batch_size: rows of a batch.
        splits: splits to read, e.g. `[test]`.
        tasks: names of tasks, or None for all.
        rationales: folder of the queries' rationales, or None; for a single root.
        features: folder of cached features, or None to decode images; for a single root.
        on_error: `raise`, or `skip`: what was skipped is counted and makes a score partial.
        num_workers: processes that read ahead.
        whole_galleries: every rank embeds all candidates, for a gate that looks at scores.

    Attributes:
        pending_roots: set by the writer of scores (`mmemb.storage.protocols.BenchmarkData`); if not
            None, only these roots are read.
    """

    def __init__(
        self,
        root: str,
        batch_size: int,
        splits: Sequence[str] = ("test",),
        tasks: list[str] | None = None,
        rationales: str | None = None,
        features: str | None = None,
        on_error: OnError = "raise",
        num_workers: int = 0,
        whole_galleries: bool = False,
    ) -> None:
        super().__init__(root)
        self._batch_size, self._splits, self._tasks = batch_size, tuple(splits), tasks
        self._whole = whole_galleries
        self._reading = (rationales, features, on_error, num_workers)
        self.pending_roots: Collection[str] | None = None
        self._limit: Limit = 1.0

    def roots(self) -> dict[str, tuple[str, ...]]:
        """Maps a path below `root` to the asked-for tasks there, in order of path.

        Raises:
            FileNotFoundError: nothing was prepared there.
            ValueError: a task that no root has.
        """
        paths = roots_below(self.root)
        held = {path: [task.name for task in read_tasks(path)] for path in paths}

        all_tasks = {name for names in held.values() for name in names}
        if unknown := sorted(set(self._tasks or ()) - all_tasks):
            raise ValueError(f"{self.root} has no task(s) {unknown}; it has {sorted(all_tasks)}.")

        tasks = all_tasks if self._tasks is None else set(self._tasks)
        tasks_of = {
            str(path.relative_to(self.root)): tuple(name for name in names if name in tasks)
            for path, names in held.items()
        }

        return {path: names for path, names in tasks_of.items() if names}

    @override
    def test_dataloader(self) -> BenchmarkLoader:
        self._limit = self.take_limit("test")
        return BenchmarkLoader(self)

    def batches_of(self, path: str, names: Sequence[str]) -> Iterator[RankingBatch]:
        """All batches of one root; `limit_test_batches` leaves so many query batches of each."""
        root = self.root / path
        # Opened root by root: a benchmark has many, and memory holds one of them at a time.
        data = EvaluationRows(root, self._batch_size, *self._reading)

        rows = data.select(self._splits, names)
        if not rows:
            raise ValueError(f"{root}: no query of split(s) {list(self._splits)} in {list(names)}.")

        loaders: list[FiniteLoader] = data.loaders(
            rows, *self.place, whole_galleries=self._whole, limit=self._limit
        )
        for loader in loaders:
            yield from loader

        # What makes a score partial: rows that this rank skipped, that preparing the data left
        # out, that the limit cuts.
        skipped = tuple(sentence for loader in loaders for sentence in loader.skipped)
        # Stated once, by the first rank: the sentences of all ranks are gathered and counted.
        if self.place[0] == 0 and (left_out := revision_and_losses(root)[1]):
            skipped += (left_out,)
        if self.place[0] == 0:
            skipped += self._cut(data, rows)

        tasks = tuple(task for task in data.tasks if task.name in names)
        yield RankingBatch(end=TaskEnd(path, tasks, data_identity(root, data), skipped))

    def _cut(self, data: EvaluationRows, rows: Sequence[Row]) -> tuple[str, ...]:
        """One sentence if the limit cuts queries of a root."""
        shares = data.query_chunks(rows, self.place[1], self._limit)
        num_kept = sum(len(chunk.rows) for chunks in shares for chunk in chunks)
        if num_kept == len(rows):
            return ()
        return (f"limit_test_batches left {num_kept} of {len(rows)} queries",)

    @override
    def shard_rows(self) -> Mapping[str, Sequence[Row]]:
        raise ValueError("A benchmark is tested; `predict` reads one root: EvaluationDataModule.")


@final
class BenchmarkLoader:
    """Iterates over the pending roots; has no length, since nothing was opened yet."""

    def __init__(self, module: BenchmarkDataModule) -> None:
        self._module = module

    def __iter__(self) -> Iterator[RankingBatch]:
        pending = self._module.pending_roots
        for path, names in self._module.roots().items():
            if pending is None or path in pending:
                yield from self._module.batches_of(path, names)


def data_identity(root: Path, data: EvaluationRows) -> dict[str, str]:
    """Fingerprints and content of queries and candidates as they were opened, and the revision."""
    return {
        QUERIES: data.query_index.manifest.fingerprint,
        CANDIDATES: data.gallery_index.manifest.fingerprint,
        "content": content_of(data.query_index, data.gallery_index),
        "revision": revision_and_losses(root)[0],
    }
