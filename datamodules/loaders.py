"""Finite loaders over chunks of rows, and what all data modules with a `predict` loader share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, final

from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.plugins.precision import Precision
from torch.utils.data import Dataset
from typing_extensions import override

from datamodules.decode import DecodeError, OnError
from datamodules.limits import BatchLimits, Limit, LimitedStage, num_batches
from datamodules.samples import Row, rows_of
from datamodules.stream import (
    Item,
    RepeatedSteps,
    StartMethod,
    StepStream,
    item_loader,
    warn_skipped,
)
from mmemb.storage.manifests import IndexEntry, Origin
from mmemb.storage.shard_index import ShardIndex
from mmemb.training.batch_plan import BatchPlan, rank_slice

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
        # Of the latest pass only: a loader is iterated once per epoch.
        self.skipped = ()
        order = range(len(self._items))
        items = item_loader(self._items, order, self._num_workers, None)

        for number, (batch, problems) in enumerate(items, 1):
            self.skipped += problems

            # Before the last batch: Lightning reads nothing after the length is reached.
            if self.skipped and number == len(order):
                warn_skipped(self.skipped, len(self.skipped))
            if batch is not None:
                yield batch


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
    shards: dict[str, list[Row]] = {}
    for row in rows:
        shards.setdefault(row.entry.shard, []).append(row)

        # Compared by identity: one index object stands for one opened folder.
        first = shards[row.entry.shard][0]
        if first.index is not row.index:
            raise ValueError(
                f"Shard name {row.entry.shard} occurs in {first.index.folder} and in "
                f"{row.index.folder}; sidecars are joined by shard name, so expected different "
                f"ones. Write one of the folders again with another prefix."
            )

    return shards


def check_precision(plugin: Precision) -> None:
    """Raises ValueError if a precision would convert batches, which are frozen records of what a
    backbone collates by itself."""
    if type(plugin).convert_input is not Precision.convert_input:
        raise ValueError(
            f"trainer.precision {plugin.precision} ({type(plugin).__name__}) converts weights and "
            "batches as a whole: set it to bf16-mixed, 16-mixed or 32-true, and spread weights by "
            "ModelParallelStrategy."
        )


class ShardDataModule(LightningDataModule, ABC):
    """A data module whose `predict` loader runs over whole shards.

    Attributes:
        pending_shards: set by the writer of the output (`mmemb.storage.protocols.ShardData`); if
            not None, only these are read. Rank r of W predicts `pending_shards[r::W]`.
    """

    def __init__(self, root: str) -> None:
        super().__init__()
        self.root = Path(root)
        self.pending_shards: Collection[str] | None = None
        self._limits = BatchLimits()

    @override
    def setup(self, stage: str) -> None:
        # A run that ended in an error had no teardown.
        self._limits.give_back()

        if self.trainer is None:
            return

        check_precision(self.trainer.precision_plugin)
        if stage != "fit":
            return

        if self.trainer.reload_dataloaders_every_n_epochs:
            raise ValueError(
                "trainer.reload_dataloaders_every_n_epochs would start the stream of training "
                "batches again and train on its first ones only: set it to 0."
            )
        self._define_epoch(self.trainer)

    @override
    def teardown(self, stage: str) -> None:
        self._limits.give_back()

    def predict_shards(self) -> tuple[str, ...]:
        """Names of all shards that a complete output has, in order."""
        return tuple(self.shard_rows())

    def origins(self) -> dict[str, tuple[Origin, ...]]:
        """Shard -> what `predict` makes the output's shard of this name from: the shard that it
        reads, and what is joined with it. All of it is opened, and `predict` reads what was opened.
        """
        return {
            shard: (rows[0].index.origin(shard), *self.joined_origins(shard))
            for shard, rows in self.shard_rows().items()
        }

    def joined_origins(self, shard: str) -> tuple[Origin, ...]:
        """Sidecars' shards and whole folders that `predict` reads for a shard, beside its rows."""
        return ()

    @abstractmethod
    def shard_rows(self) -> Mapping[str, Sequence[Any]]:
        """Every shard that `predict` reads, with its rows; none is empty."""

    def shard_sizes(self) -> Mapping[str, int]:
        """Number of rows of each shard that a complete output has; an absent one is not known."""
        return {name: len(rows) for name, rows in self.shard_rows().items()}

    @property
    def trained_facts(self) -> frozenset[str]:
        """Facts that a model trained on `train_dataloader` has been fitted on."""
        return frozenset()

    @property
    def calibrated_facts(self) -> frozenset[str]:
        """Facts that only a number is fitted on (tau, eta, a threshold); weights never see them."""
        return frozenset()

    @property
    def place(self) -> tuple[int, int]:
        """(rank, world) of this process."""
        trainer = self.trainer
        return (trainer.global_rank, trainer.world_size) if trainer else (0, 1)

    def batches_of_a_pass(self) -> int | None:
        """Number of global training batches that one pass over the rows takes; None where the
        training loader ends by itself.

        Raises:
            ValueError: the training loader is endless, and its number of rows is not known.
        """
        return None

    def _define_epoch(self, trainer: Trainer) -> None:
        """Makes a number of the trainer's limit, where it is a share or epochs are counted.

        An endless stream has no length, so that Lightning can do neither.
        """
        limit = trainer.limit_train_batches
        # Lightning writes "no bound on epochs" as None or as -1.
        counts_epochs = trainer.max_epochs is not None and trainer.max_epochs >= 0

        if isinstance(limit, int) or not (limit < 1 or counts_epochs or trainer.overfit_batches):
            return

        total = self.batches_of_a_pass()
        if total is not None:
            name = "overfit_batches" if trainer.overfit_batches else "limit_train_batches"
            count = num_batches(total, limit, name)
            self._limits.take(trainer, "train", left=count)

    def batch_plan(
        self,
        entries: Sequence[IndexEntry],
        batch_size: int,
        seed: int,
        group_size: int | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> BatchPlan:
        """Plans the training batches of rows; without a group size a batch is one group."""
        plan = BatchPlan(
            entries,
            batch_size=batch_size,
            group_size=batch_size if group_size is None else group_size,
            weights=weights or {},
            seed=seed,
        )
        # Refuses a batch that the ranks cannot share here, not in a loader's process.
        rank_slice(range(batch_size), *self.place)
        return plan

    def stream(
        self, steps: Dataset[Item], num_workers: int = 0, start_method: StartMethod | None = None
    ) -> StepStream:
        """Returns the endless stream over training steps; `overfit_batches` repeats the first."""
        trainer = self.trainer
        if trainer is not None and trainer.overfit_batches:
            steps = RepeatedSteps(steps, trainer.limit_train_batches)
        return StepStream(steps, num_workers, start_method)

    def take_limit(self, stage: LimitedStage) -> Limit:
        """The trainer's `limit_<stage>_batches`, which this data module applies from now on."""
        return self._limits.take(self.trainer, stage)

    def predict_chunks(self, batch_size: int) -> list[Chunk]:
        """This rank's chunks of the pending shards: whole shards only, as many as fit in
        `limit_predict_batches`.

        Raises:
            ValueError: the limit is smaller than the first shard.
        """
        # Every W-th pending shard: ranks write files of their own and never wait for one another.
        rows, (rank, world) = self.shard_rows(), self.place
        pending = rows if self.pending_shards is None else self.pending_shards
        names = [name for name in rows if name in set(pending)][rank::world]
        chunks = chunks_of({name: rows[name] for name in names}, batch_size)

        limit = self.take_limit("predict")
        count = num_batches(len(chunks), limit, "limit_predict_batches")
        # A development run writes nothing, so that it may stop within a shard.
        if count == len(chunks) or self.trainer.fast_dev_run:
            return chunks[:count]

        cut = chunks[count].shard
        whole = [chunk for chunk in chunks[:count] if chunk.shard != cut]

        if not whole:
            needed = sum(chunk.shard == chunks[0].shard for chunk in chunks)
            raise ValueError(
                f"trainer.limit_predict_batches is {limit}, but only whole shards are written and "
                f"{chunks[0].shard} has {needed} batches: set it to at least {needed}."
            )

        return whole

    def open_rows(self, folders: Iterable[str]) -> tuple[Row, ...]:
        """All rows of folders below the root."""
        return tuple(
            row for folder in folders for row in rows_of(ShardIndex.open(self.root / folder))
        )
