"""Finite loaders over chunks of rows, and what all data modules with a `predict` loader share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, final

from lightning.pytorch import LightningDataModule
from torch.utils.data import Dataset

from datamodules.decode import DecodeError, OnError
from datamodules.samples import Row, rows_of
from datamodules.stream import Item, item_loader, warn_skipped
from mmemb.shards import ShardIndex

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive rows of one shard."""

    shard: str
    rows: tuple[Any, ...]


@final
class ChunkDataset(Dataset[Item]):
    """Chunks turned into batches by `build`, here or in a worker process."""

    def __init__(self, chunks: Sequence[Chunk], build: Callable[[Chunk], Item]) -> None:
        self._chunks = tuple(chunks)
        self._build = build

    def __len__(self) -> int:
        return len(self._chunks)

    def __getitem__(self, number: int) -> Item:
        return self._build(self._chunks[number])


@final
class FiniteLoader:
    """Batches of this rank, once each.

    It hides its DataLoader, so Lightning does not split it a second time. With several ranks, or
    nothing to do, it has no length: Lightning would skip a rank of length 0 together with the
    hooks in which the other ranks wait for it.

    Attributes:
        skipped: one sentence for each row that could not be read in the latest pass.
    """

    def __init__(
        self,
        chunks: Sequence[Chunk],
        build: Callable[[Chunk], Item],
        world: int = 1,
        num_workers: int = 0,
    ) -> None:
        self._items = ChunkDataset(chunks, build)
        self._world = world
        self._num_workers = num_workers
        self.skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        if self._world > 1 or not len(self._items):
            raise TypeError("the number of batches is not the same on all ranks, or is 0")
        return len(self._items)

    def __iter__(self) -> Iterator[Any]:
        self.skipped = ()
        order = range(len(self._items))
        for batch, problems in item_loader(self._items, order, self._num_workers, None):
            self.skipped += problems
            if batch is not None:
                yield batch
        if self.skipped:
            warn_skipped(self.skipped, len(self.skipped))


def read_rows(
    rows: Iterable[Row], read: Callable[[Row], _Result], on_error: OnError
) -> tuple[list[Row], list[_Result], tuple[str, ...]]:
    """Reads rows by one policy.

    Returns:
        The rows that could be read, what was read, and one sentence for each that could not.
    """
    good, results, problems = [], [], []
    for row in rows:
        try:
            results.append(read(row))
            good.append(row)
        except DecodeError as error:
            if on_error == "raise":
                raise
            problems.append(error.problem)
    return good, results, tuple(problems)


def chunks_of(rows_by_shard: Mapping[str, Sequence[Any]], batch_size: int) -> list[Chunk]:
    """Cuts into chunks that never cross a shard.

    >>> [len(chunk.rows) for chunk in chunks_of({"a.tar": "xyz", "b.tar": "u"}, 2)]
    [2, 1, 1]
    """
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size}: expected a positive number.")
    return [
        Chunk(shard, tuple(rows[i : i + batch_size]))
        for shard, rows in rows_by_shard.items()
        for i in range(0, len(rows), batch_size)
    ]


def by_shard(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows by the name of their shard, in order; two folders must not share a name."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.entry.shard, []).append(row)
        first = found[row.entry.shard][0]
        if first.index is not row.index:
            raise ValueError(
                f"Shard name {row.entry.shard} occurs in {first.index.folder} and in "
                f"{row.index.folder}; sidecars are joined by shard name, so expected different "
                f"ones. Write one of the folders again with another prefix."
            )
    return found


class ShardDataModule(LightningDataModule, ABC):
    """A data module whose `predict` loader runs over whole shards.

    Attributes:
        pending_shards: set by whoever writes the output; if not None, only these are read. Rank r
            of W predicts `pending_shards[r::W]`.
    """

    def __init__(self, root: str) -> None:
        super().__init__()
        self.root = Path(root)
        self.pending_shards: Collection[str] | None = None

    def predict_shards(self) -> tuple[str, ...]:
        """Names of all shards that a complete output has, in order."""
        return tuple(self.shard_rows())

    @abstractmethod
    def shard_rows(self) -> Mapping[str, Sequence[Any]]:
        """Every shard that `predict` reads, with its rows; none is empty."""

    @property
    def fitted_facts(self) -> frozenset[str]:
        """Facts that a model trained on `train_dataloader` has been fitted on."""
        return frozenset()

    @property
    def place(self) -> tuple[int, int]:
        """(rank, world) of this process."""
        trainer = self.trainer
        return (trainer.global_rank, trainer.world_size) if trainer else (0, 1)

    def predict_chunks(self, batch_size: int) -> list[Chunk]:
        """This rank's chunks of the pending shards."""
        rows, (rank, world) = self.shard_rows(), self.place
        pending = rows if self.pending_shards is None else self.pending_shards
        names = [name for name in rows if name in set(pending)][rank::world]
        return chunks_of({name: rows[name] for name in names}, batch_size)

    def open_rows(self, folders: Iterable[str]) -> tuple[Row, ...]:
        """All rows of folders below the root."""
        return tuple(
            row for folder in folders for row in rows_of(ShardIndex.open(self.root / folder))
        )
