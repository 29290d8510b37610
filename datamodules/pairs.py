"""PairDataModule: training pairs as an endless stream, validation, and pairs to select among.

See docs/method.md sections 3 and 6.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal, final

from lightning.pytorch.callbacks import ModelCheckpoint
from typing_extensions import override

from datamodules.archives import ArchiveLimits
from datamodules.decode import DecodeError, OnError
from datamodules.evaluation import EvaluationRows, has_queries
from datamodules.loaders import Chunk, FiniteLoader, ShardDataModule, by_shard
from datamodules.negatives import NegativeTable
from datamodules.pair_steps import PairSteps
from datamodules.random_crop import RandomCrop
from datamodules.samples import FeatureTable, Row, SampleReader
from datamodules.sidecars import RationaleDraw, RationaleTable
from datamodules.stream import Item, StartMethod, StepStream
from datamodules.teacher import TeacherTable
from datamodules.unindexed import ReplayStream, is_unindexed
from mmemb.distributed import gather_objects
from mmemb.records.batches import PairRowBatch, RankingBatch
from mmemb.records.inputs import Side
from mmemb.records.pairs import Pair
from mmemb.records.rationales import ScoredRationale
from mmemb.records.row_marks import failed
from mmemb.storage.manifests import Origin
from mmemb.storage.shard_index import ShardIndex

ARCHIVE_LIMITS = ArchiveLimits()
_LOG = logging.getLogger(__name__)


@final
class PairDataModule(ShardDataModule):
    """Training pairs.

    `fit` trains on an endless stream and validates on split `val`; `predict` yields every pair with
    its candidate rationales, for selection. An epoch has `limit_train_batches` batches; with
    `max_epochs` and no such number it has as many batches as the pairs fill.

    Args:
        root: the data set.
        pairs: folders below the root, e.g. `[pairs/plain]`; or tars without an index (`pipe:`,
            URL, gzip), which are streamed, and replayed on resume.
        batch_size: rows of the global batch, over all ranks.
        group_size: rows of a homogeneous group.
        source_weights: candidate space -> weight; spaces that are not named are left out; empty =
            all of them, by size.
        seed: seed of order and draws.
        sidecar: folder of the pairs' rationales, `rationales/` or `selected/`.
        features: folder of cached features; then no image is read.
        fold: `a` or `b`: train on this half of the train concepts only (judges).
        sample_by_weight: draw kept rationales by weight; else the heaviest.
        unselected_fraction: share of rows whose rationale is drawn from the whole pool.
        placebo_fraction: share of rows that get another concept's rationale.
        on_error: `raise`, or `skip` with a warning that counts and names the samples.
        num_workers: processes that read ahead.
        val_rationales: folder of the validation queries' rationales.
        start_method: start method of these processes.
        negatives: folder of mined hard negatives, or None.
        num_negatives: number of these that a pair is trained with at a step.
        teacher: folder of a teacher's vectors, or None.
        target_sidecar: folder of the targets' rationales (`SideDataModule(side: target)`), drawn by
            count, or None.
        with_candidates: `predict` reads the candidate table first, for a miner of negatives.
        archive_limits: bounds on a tar without an index: sizes and ratio of compression.
        random_crop: least and largest share of a training picture's area that is kept, such as
            `[0.9, 1.0]`, drawn anew at every step; null = whole pictures.
    """

    # No weight is trained on what is validated.
    CALIBRATION_KEYS: ClassVar[frozenset[str]] = frozenset({"val_rationales"})

    def __init__(
        self,
        root: str,
        pairs: list[str],
        batch_size: int,
        group_size: int,
        source_weights: dict[str, float],
        seed: int,
        sidecar: str | None = None,
        features: str | None = None,
        fold: Literal["a", "b"] | None = None,
        sample_by_weight: bool = True,
        unselected_fraction: float = 0.25,
        placebo_fraction: float = 0.0,
        on_error: OnError = "skip",
        num_workers: int = 0,
        val_rationales: str | None = None,
        start_method: StartMethod | None = None,
        negatives: str | None = None,
        num_negatives: int = 1,
        teacher: str | None = None,
        with_candidates: bool = False,
        target_sidecar: str | None = None,
        archive_limits: ArchiveLimits = ARCHIVE_LIMITS,
        random_crop: list[float] | None = None,
    ) -> None:
        super().__init__(root)
        self._crop = RandomCrop.of(random_crop, seed) if random_crop else None
        if self._crop and features:
            raise ValueError(
                f"random_crop needs pixels, but data.features names {features}: set one to null."
            )

        self._negatives, self._num_negatives = negatives, num_negatives
        self._teacher, self._with_candidates = teacher, with_candidates
        self._target_sidecar = target_sidecar

        self._pairs, self._batch_size, self._group_size = pairs, batch_size, group_size
        self._source_weights, self._seed, self._fold = source_weights, seed, fold
        self._sidecar, self._features, self._val_rationales = sidecar, features, val_rationales

        self._sample_by_weight, self._unselected_fraction = sample_by_weight, unselected_fraction
        self._placebo_fraction, self._on_error = placebo_fraction, on_error

        self._num_workers, self._start_method = num_workers, start_method
        self._archive_limits = archive_limits
        self._replay: ReplayStream | None = None
        self._streamed_facts: frozenset[str] = frozenset()

    @override
    def train_dataloader(self) -> StepStream | ReplayStream:
        if is_unindexed(self._pairs):
            self._replay = self._replay_stream()
            return self._replay

        entries = [row.entry for row in self._train_rows]
        plan = self.batch_plan(
            entries, self._batch_size, self._seed, self._group_size, self._weights
        )

        steps = PairSteps(
            self._train_rows,
            plan,
            self._reader,
            self._draw(self._table),
            self.place,
            self._on_error,
            self._negative_table(),
            TeacherTable(self._teacher, self._sources) if self._teacher else None,
            self._draw_of_targets(),
            self._crop,
        )

        return self.stream(steps, self._num_workers, self._start_method)

    @override
    def batches_of_a_pass(self) -> int:
        if is_unindexed(self._pairs):
            raise ValueError(
                f"pairs {self._pairs} have no index, so that the number of batches of an epoch is "
                "not known: set trainer.max_steps, and trainer.limit_train_batches to a whole "
                "number, in place of max_epochs, overfit_batches or a share."
            )

        # Fewer pairs than a batch still make one batch, which takes some of them again.
        return max(1, len(self._train_rows) // self._batch_size)

    @override
    def setup(self, stage: str) -> None:
        super().setup(stage)
        trainer = self.trainer
        if stage == "fit":
            self._check_batch()
        if stage != "fit" or trainer is None or not trainer.limit_val_batches or self._val_queries:
            return

        # Without queries a monitored metric never comes. An early stop that never comes is refused;
        # a run without a best checkpoint is still of use.
        stops = [c.monitor for c in trainer.early_stopping_callbacks]
        if stops := [name for name in stops if name.startswith("val/")]:
            raise ValueError(
                f"EarlyStopping watches {stops[0]}, but {self.root} has no query of split val: "
                "leave the callback out, or prepare the data with rows of split val."
            )
        saved = [c.monitor for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
        unsaved = ", ".join(name for name in saved if name and name.startswith("val/"))

        self._limits.take(trainer, "val", left=0)
        if trainer.is_global_zero:
            _LOG.warning(
                "%s has no query of split val: training without validation%s",
                self.root,
                f", and no checkpoint is chosen by {unsaved}" if unsaved else "",
            )

    def _check_batch(self) -> None:
        """Warns of a batch that holds pairs several times: it costs more and teaches no more."""
        if is_unindexed(self._pairs) or self.place[0]:
            return
        if (num_pairs := len(self._train_rows)) < self._batch_size:
            _LOG.warning(
                "%s: batch_size %d is larger than the %d pairs to train on, so every batch holds "
                "each of them about %.3g times, at the cost of %d rows. Set batch_size to %d or "
                "less.",
                *(self.root, self._batch_size, num_pairs, self._batch_size / num_pairs),
                *(self._batch_size, num_pairs),
            )

    @override
    def val_dataloader(self) -> list[FiniteLoader]:
        # Taken over from Lightning, which would cut the candidates together with the queries.
        limit = self.take_limit("val")
        return self._evaluation.loaders(self._val_queries, *self.place, limit=limit)

    @override
    def test_dataloader(self) -> list[FiniteLoader]:
        # Lightning would test weights that the configuration starts from, and nothing trained.
        raise ValueError(
            "A configuration of training pairs cannot be tested: it would rank with the weights "
            "that training starts from. Test with `--config own/test`, which takes the weights of "
            "runs/EXPERIMENT/train, or with another configuration of EvaluationDataModule."
        )

    @cached_property
    def _evaluation(self) -> EvaluationRows:
        return EvaluationRows(
            self.root,
            self._batch_size,
            self._val_rationales,
            self._features,
            num_workers=self._num_workers,
        )

    @cached_property
    def _val_queries(self) -> tuple[Row, ...]:
        return self._evaluation.select(["val"]) if has_queries(self.root) else ()

    @override
    def predict_dataloader(self) -> FiniteLoader | list[FiniteLoader]:
        chunks = self.predict_chunks(self._batch_size)
        build = self._ranked_rows if self._with_candidates else self._row_batch
        pairs = FiniteLoader(chunks, build, self.place[1], self._num_workers)
        if not self._with_candidates:
            return pairs

        # Candidates come first: a miner ranks every pair among all of them.
        return [self._galleries.all_candidates(self.place[1]), pairs]

    @override
    def shard_rows(self) -> Mapping[str, Sequence[Row]]:
        # All rows, for any `fold`: a sidecar has a row for every pair of its source.
        return by_shard(self._rows)

    @override
    def joined_origins(self, shard: str) -> tuple[Origin, ...]:
        written = self._table.origins(shard) if self._table else ()
        return (*written, *(self._galleries.origins(shard) if self._with_candidates else ()))

    @property
    @override
    def trained_facts(self) -> frozenset[str]:
        """Facts of all training pairs. Those of a stream are known only when they are read: then
        the ranks join theirs, so this is collective."""
        if is_unindexed(self._pairs):
            return self._join_streamed_facts()
        return frozenset(row.meta["fact"] for row in self._train_rows) | self._streamed_facts

    @override
    def state_dict(self) -> dict[str, Any]:
        # An index names the facts again after a resume; a stream does not, without reading it.
        # Lightning keeps rank 0's state alone, but calls this on every rank.
        facts = self._streamed_facts
        if is_unindexed(self._pairs):
            facts = self._join_streamed_facts()
        return {"facts": sorted(facts)} if facts else {}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._streamed_facts = frozenset(state_dict["facts"])

    def _join_streamed_facts(self) -> frozenset[str]:
        """Facts that the stream of any rank has read so far: of batches that were read ahead, and
        of those trained before a resume, too."""
        read = self._replay.facts if self._replay else frozenset()

        # Only what is new travels: after the first epoch that is nothing.
        new = gather_objects(sorted(read - self._streamed_facts))
        self._streamed_facts |= set(new)
        return self._streamed_facts

    @cached_property
    def _rows(self) -> tuple[Row, ...]:
        if is_unindexed(self._pairs):
            raise ValueError(
                f"pairs {self._pairs} have no index, so they can be trained on but not predicted; "
                f"expected folders below {self.root} made by `python -m datamodules.prepare`."
            )
        return self.open_rows(self._pairs)

    @property
    def _sources(self) -> list[ShardIndex]:
        return list({id(row.index): row.index for row in self._rows}.values())

    @cached_property
    def _train_rows(self) -> tuple[Row, ...]:
        # No weights at all means that every group is drawn, by size.
        weights = self._weights
        rows = self._fold_rows
        return tuple(row for row in rows if not weights or row.meta["source"] in weights)

    @cached_property
    def _fold_rows(self) -> tuple[Row, ...]:
        # Data that were not split in folds have none, and both judges read them.
        folds = ("a", "b", "") if self._fold is None else (self._fold, "")
        return tuple(row for row in self._rows if row.meta.get("fold", "") in folds)

    @cached_property
    def _reader(self) -> SampleReader:
        return SampleReader(FeatureTable(self._features) if self._features else None)

    @cached_property
    def _galleries(self) -> EvaluationRows:
        """Candidates in which negatives are mined."""
        return EvaluationRows(
            self.root, self._batch_size, features=self._features, num_workers=self._num_workers
        )

    @cached_property
    def _table(self) -> RationaleTable | None:
        return self._table_of(self._sidecar)

    def _table_of(self, sidecar: str | None) -> RationaleTable | None:
        if sidecar is None:
            return None
        table = RationaleTable(sidecar, self._sources)

        # A folder may lack rationales, but a sidecar that joins none of them is a wrong path.
        if not any(table.covers(row) for row in self._rows):
            raise ValueError(
                f"Sidecar {sidecar} covers no shard of {self._pairs}: expected shards of the "
                f"same names. Give the sidecar of these pairs, or none."
            )

        return table

    def _negative_table(self) -> NegativeTable | None:
        if self._negatives is None:
            return None
        return NegativeTable(
            self._negatives, self._sources, self.root, self._reader, self._num_negatives, self._seed
        )

    def _draw(self, table: RationaleTable | None) -> RationaleDraw | None:
        if table is None:
            return None

        return RationaleDraw(
            table,
            self._train_rows,
            self._seed,
            sample_by_weight=self._sample_by_weight,
            unselected_fraction=self._unselected_fraction,
            placebo_fraction=self._placebo_fraction,
        )

    def _draw_of_targets(self) -> RationaleDraw | None:
        """Draws from the whole pool: a selection judges queries' rationales alone."""
        table = self._table_of(self._target_sidecar)
        if table is None:
            return None
        return RationaleDraw(
            table, self._train_rows, self._seed, unselected_fraction=1.0, of="target"
        )

    @cached_property
    def _weights(self) -> dict[str, float]:
        """Weights of the groups that are drawn; groups that are left out are logged in one line.

        A source that could not be had leaves its groups out; the others keep their ratio.
        """
        sources = {row.meta["source"] for row in self._fold_rows}
        weights = {name: w for name, w in self._source_weights.items() if w and name in sources}

        if self._source_weights and not weights:
            raise ValueError(
                f"source_weights {self._source_weights} leave nothing to train on: groups of this "
                f"data are {sorted(sources)}. Name some of them, or give {{}} to draw by size."
            )

        # A misspelt name and a source without data look alike here, so this warns.
        if absent := sorted(set(self._source_weights) - sources):
            _LOG.warning(
                "source_weights: no training pair belongs to %s; groups of this data are %s",
                ", ".join(absent),
                ", ".join(sorted(sources)),
            )

        if weights and (unused := sorted(sources - set(weights))):
            _LOG.info("source_weights: not trained on: %s", ", ".join(unused))
        return weights

    def _ranked_rows(self, chunk: Chunk) -> Item:
        # In one record with the candidates, among which a miner ranks for these pairs.
        pairs, problems = self._row_batch(chunk)
        return RankingBatch(pairs=pairs), problems

    def _row_batch(self, chunk: Chunk) -> Item:
        samples = [self._pair_and_rationales(row) for row in chunk.rows]
        pairs, rationales, problems = zip(*samples, strict=True)
        named = tuple(problem for problem in problems if problem)

        # Reasons without the folder that the data lie in: a sidecar names no machine.
        marks = tuple(
            failed(problem.removeprefix(row.where).lstrip(",: ")) if problem else {}
            for row, problem in zip(chunk.rows, problems, strict=True)
        )

        return PairRowBatch(chunk.shard, pairs, rationales, marks=marks if named else ()), named

    def _pair_and_rationales(self, row: Row) -> tuple[Pair, tuple[ScoredRationale, ...], str]:
        try:
            return self._reader.pair(row), self._table.read(row) if self._table else (), ""
        except DecodeError as error:
            if self._on_error == "raise":
                raise
            # The row keeps its place, marked and without content: a sidecar has every key.
            named = {
                name: row.meta[name] for name in ("task", "split", "concept", "fact", "source")
            }

            empty = Pair(
                row.entry.key, **named, gallery="", query=Side(), target=Side(), target_name=""
            )
            return empty, (), error.problem

    def _replay_stream(self) -> ReplayStream:
        # Both are joined by key with an index, which a stream lacks.
        if self._sidecar or self._fold:
            raise ValueError(
                f"pairs {self._pairs} have no index, so no sidecar can be joined and no half "
                f"taken: expected folders made by `python -m datamodules.prepare`."
            )
        if self._crop:
            raise ValueError(
                f"pairs {self._pairs} have no index, and random_crop is for folders with one: "
                "leave it out, or prepare a folder of shards."
            )

        if self.trainer is not None and self.trainer.overfit_batches:
            raise ValueError(
                f"pairs {self._pairs} have no index, so that no batches of theirs can be repeated: "
                "leave trainer.overfit_batches out, or prepare a folder of shards."
            )

        return ReplayStream(
            self._pairs,
            self._batch_size,
            self._seed,
            self.place,
            self._reader,
            self._on_error,
            self._archive_limits,
        )
