"""DepthValueDataModule: the rows that the gate learns from, one per query with its depth values.

It is the `GateData` of `mmemb/storage/protocols.py`. Shapes: B rows, D embedding width, H width of
a prompt state, A depths.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from math import nan
from pathlib import Path
from typing import NamedTuple, final

import torch
from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import override

from datamodules.data_roots import QUERIES
from datamodules.decode import decode_array, decode_json
from datamodules.evaluation import EvaluationRows
from datamodules.joins import check_join
from datamodules.loaders import Chunk, FiniteLoader, ShardDataModule, by_shard, chunks_of
from datamodules.sample_json import check_index
from datamodules.samples import Row
from datamodules.stream import Item, StepStream
from mmemb.records.batches import DepthValueBatch
from mmemb.records.gate_state import GateInputs
from mmemb.records.sidecar_json import DepthValueJson
from mmemb.storage.manifests import Origin
from mmemb.storage.run_marks import run_mark
from mmemb.storage.shard_index import ShardIndex
from mmemb.training.batch_plan import BatchPlan, rank_slice


class _Measured(NamedTuple):
    """One sample of `depth_values/`."""

    embedding_D: Tensor
    data: DepthValueJson
    prompt_state_H: Tensor


@final
class DepthValueTable:
    """`depth_values/`, joined with the queries that it is about: all of a shard, or none."""

    def __init__(self, folder: str, queries: ShardIndex) -> None:
        self._index = ShardIndex.open(folder)
        self._shards = check_join(queries, self._index)
        if not self._shards:
            raise ValueError(
                f"{folder} covers no shard of {queries.folder}: expected the depth values of these "
                f"queries. Run the step that makes it again, or correct `depth_values`."
            )

    def origins(self, shard: str) -> tuple[Origin, ...]:
        """The sidecar's shard of a covered shard of queries."""
        return (self._index.origin(shard),)

    def covered(self, rows: Iterable[Row]) -> tuple[Row, ...]:
        """The rows that were measured."""
        return tuple(row for row in rows if row.entry.shard in self._shards)

    def of_split(self, rows: Iterable[Row], split: str) -> tuple[Row, ...]:
        """All rows of a split; ValueError if there is none, or one was not measured."""
        wanted = [row for row in rows if row.meta["split"] == split]
        if not wanted:
            raise ValueError(f"No query belongs to split {split}: prepare the data again.")

        # A smaller split would change the gate's numbers without a warning.
        if missing := [row for row in wanted if row.entry.shard not in self._shards]:
            raise ValueError(
                f"{self._index.folder} does not cover {missing[0].where}, a query of split "
                f"{split}: run the stage that makes it with this split among its `data.splits`."
            )

        return tuple(wanted)

    def check_embedder(self, run: Path) -> None:
        """Raises ValueError if the depth values were measured with another run's embedder."""
        expected, mark = run_mark(run), self._index.entries[0].meta.get("embedder")

        # Folders that carry no mark cannot be compared, and pass.
        if expected and mark and mark != expected:
            raise ValueError(
                f"{self._index.folder} and {run} disagree: the depth values were measured with the "
                f"embedder of the run {mark}, but `embedder` of the gate is the run {expected}. "
                "Make the depth values again with this embedder, or name the one that they are of."
            )

    def batch(self, rows: Sequence[Row], shard: str = "") -> DepthValueBatch:
        """Returns the rows as tensors; depth value and cost are NaN where a depth has no draw."""
        if not rows:
            raise ValueError(f"{self._index.folder} was asked for a batch of no query.")

        measured = [self._read(row) for row in rows]
        depths = self._depths(rows, measured)

        try:
            return DepthValueBatch(
                keys=tuple(row.entry.key for row in rows),
                metas=tuple(row.meta for row in rows),
                inputs=GateInputs(
                    embedding_BD=torch.stack([query.embedding_D for query in measured]).float(),
                    scores_B3=torch.tensor([query.data.scores for query in measured]),
                    prompt_state_BH=torch.stack([query.prompt_state_H for query in measured]),
                ),
                depth_value_BA=_mean_over_draws([query.data.depth_value for query in measured]),
                cost_BA=_mean_over_draws([query.data.cost for query in measured]),
                eligible_B=torch.tensor([query.data.eligible for query in measured]),
                shard=shard,
                depths=depths,
            )
        except (RuntimeError, ValueError) as error:
            # Stacking fails on rows of unequal widths, which no single row shows.
            raise ValueError(
                f"{self._index.folder}, samples {rows[0].entry.key} to {rows[-1].entry.key}: "
                f"expected a state of one width, depth value, cost and eligible in each; "
                f"{type(error).__name__} {error}. Run the step that makes the folder again."
            ) from None

    def _depths(self, rows: Sequence[Row], measured: Sequence[_Measured]) -> tuple[str, ...]:
        # A batch has one column per depth, so all rows must have the same ones.
        first = measured[0].data.depths
        for row, query in zip(rows, measured, strict=True):
            if query.data.depths != first:
                raise ValueError(
                    f"{self._index.folder}, sample {row.entry.key} was measured at the depths "
                    f"{list(query.data.depths)}, others at {list(first)}: make the folder again."
                )
        return first

    def _read(self, row: Row) -> _Measured:
        entry = self._index.by_key[row.entry.key]
        where = f"Shard {self._index.folder / entry.shard}, sample {entry.key}"
        members = self._index.read(entry, {"direct.npy", "json"})

        if missing := sorted({"direct.npy", "json"} - set(members)):
            raise ValueError(f"{where} lacks {missing}: run the step that makes it again.")
        embedding_D = decode_array(members["direct.npy"], f"{where}, member direct.npy")
        json_where = f"{where}, member json"
        data = decode_json(members["json"], DepthValueJson, json_where, "Make the folder again.")
        _check_agrees(data, row, where)

        prompt_state_H = self._prompt_state(row.entry.key)

        # Only a query that the writer cannot read lacks a prompt state, and it is not eligible.
        if data.eligible and self._prompt_state_width and "prompt_state.npy" not in entry.members:
            raise ValueError(
                f"{where} is eligible but lacks prompt_state.npy: make the folder again."
            )

        if len(data.scores) not in (0, 3):
            raise ValueError(f"{where}: scores are {data.scores!r}, expected three numbers.")
        return _Measured(embedding_D, data, prompt_state_H)

    def _prompt_state(self, key: str) -> Tensor:
        """(H,) prompt state of the writer; 0 where it cannot read, H = 0 where none is kept."""
        entry = self._index.by_key[key]
        if "prompt_state.npy" not in entry.members:
            return torch.zeros(self._prompt_state_width)

        data = self._index.read(entry, {"prompt_state.npy"})["prompt_state.npy"]
        return decode_array(data, f"{self._index.folder / entry.shard}, sample {key}").float()

    @cached_property
    def _prompt_state_width(self) -> int:
        keys = (entry.key for entry in self._index.entries if "prompt_state.npy" in entry.members)
        return len(self._prompt_state(key)) if (key := next(keys, None)) else 0


def _check_agrees(data: DepthValueJson, row: Row, where: str) -> None:
    """Raises ValueError about a row that was measured on another query than its index names."""
    try:
        check_index(data, row.meta)
    except ValueError as error:
        raise ValueError(f"{where}: {error} Make the folder again.") from None


@final
class DepthValueSteps(Dataset[Item]):
    """Step -> this rank's part of a batch of depth values."""

    def __init__(
        self, rows: Sequence[Row], plan: BatchPlan, table: DepthValueTable, place: tuple[int, int]
    ) -> None:
        self._rows, self._plan, self._table, self._place = rows, plan, table, place

    def __getitem__(self, step: int) -> Item:
        positions = rank_slice(self._plan.positions(step), *self._place)
        return self._table.batch([self._rows[position] for position in positions]), ()


@final
class DepthValueDataModule(ShardDataModule):
    """Depth values of split `gate` (fit), `calibration` (validate), all measured queries (predict).

    `test` yields candidates and queries of split `test`, as EvaluationDataModule does.

    Args:
        root: the data set.
        depth_values: folder of the queries' depth values.
        batch_size: rows of a (global) batch.
        seed: seed of the training order.
        rationales: folder of the queries' rationales, for `test`.
        features: folder of cached features, for `test`.
    """

    def __init__(
        self,
        root: str,
        depth_values: str,
        batch_size: int,
        seed: int,
        rationales: str | None = None,
        features: str | None = None,
    ) -> None:
        super().__init__(root)
        self._depth_values, self._batch_size, self._seed = depth_values, batch_size, seed
        self._rationales, self._features = rationales, features

    @override
    def shard_rows(self) -> Mapping[str, Sequence[Row]]:
        return by_shard(self._table.covered(self._rows))

    @override
    def joined_origins(self, shard: str) -> tuple[Origin, ...]:
        return self._table.origins(shard)

    @property
    @override
    def trained_facts(self) -> frozenset[str]:
        return frozenset(row.meta["fact"] for row in self._split("gate"))

    @property
    @override
    def calibrated_facts(self) -> frozenset[str]:
        """Facts that the thresholds are fitted on."""
        return frozenset(row.meta["fact"] for row in self._split("calibration"))

    @property
    def depths(self) -> tuple[str, ...]:
        """The depths at which the depth values were measured."""
        return self._table.batch(self._table.covered(self._rows)[:1]).depths

    def check_embedder(self, run: Path) -> None:
        """Raises ValueError if the depth values are those of another embedder than `run`'s."""
        self._table.check_embedder(run)

    def gate_inputs(self) -> GateInputs:
        """Inputs of the eligible queries of split `gate`, by which a head is standardised."""
        batch = self._table.batch(self._split("gate"))
        return batch.inputs.map(lambda x: x[batch.eligible_B])

    @override
    def train_dataloader(self) -> StepStream:
        rows = self._split("gate")
        plan = self.batch_plan([row.entry for row in rows], self._batch_size, self._seed)
        return self.stream(DepthValueSteps(rows, plan, self._table, self.place))

    @override
    def batches_of_a_pass(self) -> int:
        return max(1, len(self._split("gate")) // self._batch_size)

    @override
    def val_dataloader(self) -> FiniteLoader:
        rank, world = self.place
        rows = by_shard(self._split("calibration")[rank::world])
        return FiniteLoader(chunks_of(rows, self._batch_size), self._batch, world)

    @override
    def test_dataloader(self) -> list[FiniteLoader]:
        data = EvaluationRows(self.root, self._batch_size, self._rationales, self._features)
        queries, limit = data.select(["test"]), self.take_limit("test")

        # The gate's state holds the shape of a query's scores over all candidates.
        return data.loaders(queries, *self.place, whole_galleries=True, limit=limit)

    @override
    def predict_dataloader(self) -> FiniteLoader:
        return FiniteLoader(self.predict_chunks(self._batch_size), self._batch, self.place[1])

    @cached_property
    def _rows(self) -> tuple[Row, ...]:
        return self.open_rows([QUERIES])

    @cached_property
    def _table(self) -> DepthValueTable:
        if not self._rows:
            raise ValueError(f"{self.root / QUERIES} holds no query; prepare the data again.")
        return DepthValueTable(self._depth_values, self._rows[0].index)

    def _split(self, split: str) -> tuple[Row, ...]:
        return self._table.of_split(self._rows, split)

    def _batch(self, chunk: Chunk) -> Item:
        return self._table.batch(chunk.rows, chunk.shard), ()


def _mean_over_draws(rows_BA: Sequence[Sequence[Sequence[float]]]) -> Tensor:
    # A depth without draws is NaN and not 0, which would pass for a measured depth value.
    means = [[sum(draws) / len(draws) if draws else nan for draws in row] for row in rows_BA]
    return torch.tensor(means)
