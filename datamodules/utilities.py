"""UtilityDataModule: the rows that the gate learns from, one per query with its utility per depth.

It is the `GateData` of `mmemb/storage/protocols.py`. Shapes: B rows, D embedding width, H width of
a probe, A depths.
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
from mmemb.records.batches import UtilityBatch
from mmemb.records.gate_state import GateInputs
from mmemb.records.sidecar_json import UtilityJson
from mmemb.storage.manifests import Origin
from mmemb.storage.run_marks import run_mark
from mmemb.storage.shard_index import ShardIndex
from mmemb.training.batch_plan import BatchPlan, rank_slice


class _Measured(NamedTuple):
    """One sample of `utilities/`."""

    embedding_D: Tensor
    data: UtilityJson
    probe_H: Tensor


@final
class UtilityTable:
    """`utilities/`, joined with the queries that it is about: all of a shard, or none."""

    def __init__(self, folder: str, queries: ShardIndex) -> None:
        self._index = ShardIndex.open(folder)
        self._shards = check_join(queries, self._index)
        if not self._shards:
            raise ValueError(
                f"{folder} covers no shard of {queries.folder}: expected the utilities of these "
                f"queries. Run the step that makes it again, or correct `utilities`."
            )

    def origins(self, shard: str) -> tuple[Origin, ...]:
        """The sidecar's shard of a covered shard of queries."""
        return (self._index.origin(shard),)

    def covered(self, rows: Iterable[Row]) -> tuple[Row, ...]:
        """The rows that were measured."""
        return tuple(row for row in rows if row.entry.shard in self._shards)

    def of_part(self, rows: Iterable[Row], part: str) -> tuple[Row, ...]:
        """All rows of a data part; ValueError if there is none, or one was not measured."""
        wanted = [row for row in rows if row.meta["part"] == part]
        if not wanted:
            raise ValueError(f"No query belongs to part {part}: prepare the data again.")

        # A smaller part would change the gate's numbers without a warning.
        if missing := [row for row in wanted if row.entry.shard not in self._shards]:
            raise ValueError(
                f"{self._index.folder} does not cover {missing[0].where}, a query of part {part}: "
                "run the stage that makes it with this part among its `data.parts`."
            )

        return tuple(wanted)

    def check_embedder(self, run: Path) -> None:
        """Raises ValueError if the utilities were measured with another run's embedder."""
        expected, found = run_mark(run), self._index.entries[0].meta.get("embedder")

        # Folders that carry no mark cannot be compared, and pass.
        if expected and found and found != expected:
            raise ValueError(
                f"{self._index.folder} and {run} disagree: the utilities were measured with the "
                f"embedder of the run {found}, but `embedder` of the gate is the run {expected}. "
                "Make the utilities again with this embedder, or name the one that they belong to."
            )

    def batch(self, rows: Sequence[Row], shard: str = "") -> UtilityBatch:
        """The rows as tensors; a depth that could not be taken has utility and cost NaN."""
        if not rows:
            raise ValueError(f"{self._index.folder} was asked for a batch of no query.")

        found = [self._read(row) for row in rows]
        depths = self._depths(rows, found)
        try:
            return UtilityBatch(
                keys=tuple(row.entry.key for row in rows),
                metas=tuple(row.meta for row in rows),
                inputs=GateInputs(
                    embedding_BD=torch.stack([query.embedding_D for query in found]).float(),
                    scores_B3=torch.tensor([query.data.scores for query in found]),
                    probe_BH=torch.stack([query.probe_H for query in found]),
                ),
                utility_BA=_mean_over_draws([query.data.utility for query in found]),
                cost_BA=_mean_over_draws([query.data.cost for query in found]),
                eligible_B=torch.tensor([query.data.eligible for query in found]),
                shard=shard,
                depths=depths,
            )
        except (RuntimeError, ValueError) as error:
            # Stacking fails on rows of unequal widths, which no single row shows.
            raise ValueError(
                f"{self._index.folder}, samples {rows[0].entry.key} to {rows[-1].entry.key}: "
                f"expected a state of one width, utility, cost and eligible in each; "
                f"{type(error).__name__} {error}. Run the step that makes the folder again."
            ) from None

    def _depths(self, rows: Sequence[Row], found: Sequence[_Measured]) -> tuple[str, ...]:
        # A batch has one column per depth, so all rows must have the same ones.
        first = found[0].data.depths
        for row, query in zip(rows, found, strict=True):
            if query.data.depths != first:
                raise ValueError(
                    f"{self._index.folder}, sample {row.entry.key} was measured at the depths "
                    f"{list(query.data.depths)}, others at {list(first)}: make the folder again."
                )
        return first

    def _read(self, row: Row) -> _Measured:
        entry = self._index.by_key[row.entry.key]
        where = f"Shard {self._index.folder / entry.shard}, sample {entry.key}"
        members = self._index.read(entry, {"state.npy", "json"})

        if missing := sorted({"state.npy", "json"} - set(members)):
            raise ValueError(f"{where} lacks {missing}: run the step that makes it again.")
        embedding_D = decode_array(members["state.npy"], f"{where}, member state.npy")
        json_where = f"{where}, member json"
        data = decode_json(members["json"], UtilityJson, json_where, "Make the folder again.")
        _check_agrees(data, row, where)

        probe_H = self._probe(row.entry.key)

        # Only a query that the worker cannot read lacks a probe, and it is not eligible.
        if data.eligible and self._probe_width and "probe.npy" not in entry.members:
            raise ValueError(f"{where} is eligible but lacks probe.npy: make the folder again.")

        if len(data.scores) not in (0, 3):
            raise ValueError(f"{where}: scores are {data.scores!r}, expected three numbers.")
        return _Measured(embedding_D, data, probe_H)

    def _probe(self, key: str) -> Tensor:
        """(H,) hidden state of the worker; 0 where it cannot read, H = 0 without any probe."""
        entry = self._index.by_key[key]
        if "probe.npy" not in entry.members:
            return torch.zeros(self._probe_width)

        data = self._index.read(entry, {"probe.npy"})["probe.npy"]
        return decode_array(data, f"{self._index.folder / entry.shard}, sample {key}").float()

    @cached_property
    def _probe_width(self) -> int:
        probed = (entry.key for entry in self._index.entries if "probe.npy" in entry.members)
        return len(self._probe(key)) if (key := next(probed, None)) else 0


def _check_agrees(data: UtilityJson, row: Row, where: str) -> None:
    """Raises ValueError about a row that was measured on another query than its index names."""
    try:
        check_index(data, row.meta)
    except ValueError as error:
        raise ValueError(f"{where}: {error} Make the folder again.") from None


@final
class UtilitySteps(Dataset[Item]):
    """Step -> this rank's part of a batch of utilities."""

    def __init__(
        self, rows: Sequence[Row], plan: BatchPlan, table: UtilityTable, place: tuple[int, int]
    ) -> None:
        self._rows, self._plan, self._table, self._place = rows, plan, table, place

    def __getitem__(self, step: int) -> Item:
        positions = rank_slice(self._plan.positions(step), *self._place)
        return self._table.batch([self._rows[position] for position in positions]), ()


@final
class UtilityDataModule(ShardDataModule):
    """Utilities of part `gate` (fit), `calibration` (validate), of all measured queries (predict).

    `test` yields candidates and queries of part `test`, as EvaluationDataModule does.

    Args:
        root: the data set.
        utilities: folder of the queries' utilities.
        batch_size: rows of a (global) batch.
        seed: seed of the training order.
        rationales: folder of the queries' rationales, for `test`.
        features: folder of cached features, for `test`.
    """

    def __init__(
        self,
        root: str,
        utilities: str,
        batch_size: int,
        seed: int,
        rationales: str | None = None,
        features: str | None = None,
    ) -> None:
        super().__init__(root)
        self._utilities, self._batch_size, self._seed = utilities, batch_size, seed
        self._rationales, self._features = rationales, features

    @override
    def shard_rows(self) -> Mapping[str, Sequence[Row]]:
        return by_shard(self._table.covered(self._rows))

    @override
    def joined_origins(self, shard: str) -> tuple[Origin, ...]:
        return self._table.origins(shard)

    @property
    @override
    def fitted_facts(self) -> frozenset[str]:
        return frozenset(row.meta["fact"] for row in self._part("gate"))

    @property
    @override
    def calibrated_facts(self) -> frozenset[str]:
        """Facts that the thresholds are fitted on."""
        return frozenset(row.meta["fact"] for row in self._part("calibration"))

    @property
    def depths(self) -> tuple[str, ...]:
        """The depths at which the utilities were measured."""
        return self._table.batch(self._table.covered(self._rows)[:1]).depths

    def check_embedder(self, run: Path) -> None:
        """Raises ValueError if the utilities were measured with another embedder than `run`'s."""
        self._table.check_embedder(run)

    def gate_inputs(self) -> GateInputs:
        """Inputs of the eligible queries of part `gate`, by which a head is standardised."""
        batch = self._table.batch(self._part("gate"))
        return batch.inputs.map(lambda x: x[batch.eligible_B])

    @override
    def train_dataloader(self) -> StepStream:
        rows = self._part("gate")
        plan = self.batch_plan([row.entry for row in rows], self._batch_size, self._seed)
        return self.stream(UtilitySteps(rows, plan, self._table, self.place))

    @override
    def batches_of_a_pass(self) -> int:
        return max(1, len(self._part("gate")) // self._batch_size)

    @override
    def val_dataloader(self) -> FiniteLoader:
        rank, world = self.place
        rows = by_shard(self._part("calibration")[rank::world])
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
    def _table(self) -> UtilityTable:
        if not self._rows:
            raise ValueError(f"{self.root / QUERIES} holds no query; prepare the data again.")
        return UtilityTable(self._utilities, self._rows[0].index)

    def _part(self, part: str) -> tuple[Row, ...]:
        return self._table.of_part(self._rows, part)

    def _batch(self, chunk: Chunk) -> Item:
        return self._table.batch(chunk.rows, chunk.shard), ()


def _mean_over_draws(rows_BA: Sequence[Sequence[Sequence[float]]]) -> Tensor:
    # A depth without draws is NaN and not 0, which would pass for a measured utility.
    means = [[sum(draws) / len(draws) if draws else nan for draws in row] for row in rows_BA]
    return torch.tensor(means)
