"""SelectionDataModule: pairs with their candidate rationales and the candidates to rank among."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, final

from typing_extensions import override

from datamodules.data_roots import CANDIDATES
from datamodules.evaluation import EvaluationRows
from datamodules.loaders import Chunk, FiniteLoader, ShardDataModule, by_shard, chunks_of
from datamodules.negatives import NegativeTable
from datamodules.samples import FeatureTable, Row, SampleReader
from datamodules.scores import ScoreTable
from datamodules.sidecars import RationaleTable
from datamodules.stream import Item
from mmemb.records.batches import PairRowBatch
from mmemb.records.hashing import stable_hash
from mmemb.records.inputs import Side
from mmemb.records.pairs import Candidate, Pair, Query
from mmemb.selection.pair_scores import JudgedPairs, SelectionScores
from mmemb.storage.manifests import Origin
from mmemb.storage.shard_index import ShardIndex


@final
class SelectionDataModule(ShardDataModule):
    """Pairs for a judge, and the scores that the judge gave (docs/method.md section 5).

    A judge reads pairs, and the calibration queries that ask for the same tasks, each with all of
    its candidates: `judge_loader`. Its scores lie in a sidecar. `fit` reads the scores alone,
    `predict` the scores and the pairs' rationales, `test` the scores and the pairs as selected.

    Args:
        root: the data set.
        rationales: folder of the rationales of pairs and queries.
        batch_size: pairs of a batch; donors of placebos come from the same batch.
        scores: folder of the judge's scores, made by the first command that needs them.
        pairs: folders of pairs below `<root>/pairs`.
        selected: folder that `predict` writes, read by `test`.
        features: folder of cached features, or None to decode images.
        num_workers: processes that read ahead.
        num_negatives: number of wrong candidates that a pair is judged against, always the same;
            None = all of its gallery, which is too many for a generative judge.
        negatives: folder of mined hard negatives, which come first; needs `num_negatives`.
    """

    # Judges read these; a training on `selected/` reads nothing but the rationales.
    CALIBRATION_KEYS: ClassVar[frozenset[str]] = frozenset({"selected", "features", "negatives"})

    def __init__(
        self,
        root: str,
        rationales: str,
        batch_size: int,
        scores: str,
        pairs: Sequence[str] = ("pairs/questions",),
        selected: str | None = None,
        features: str | None = None,
        num_workers: int = 0,
        num_negatives: int | None = None,
        negatives: str | None = None,
    ) -> None:
        super().__init__(root)
        if num_negatives is not None and num_negatives < 1:
            raise ValueError(f"num_negatives {num_negatives}: expected 1 or more, or null for all.")
        if negatives is not None and num_negatives is None:
            raise ValueError("negatives is set, but not num_negatives: say how many are judged.")

        self._num_negatives, self._negatives = num_negatives, negatives
        self._rationales, self._selected, self._pairs = rationales, selected, tuple(pairs)
        self._batch_size, self._features, self._scores = batch_size, features, Path(scores)
        self._num_workers = num_workers

    @override
    def shard_rows(self) -> Mapping[str, Sequence[Row]]:
        return by_shard(self._rows)

    @override
    def joined_origins(self, shard: str) -> tuple[Origin, ...]:
        mined = self._mined.origins(shard) if self._mined else ()
        return (*self._drafts.origins(shard), *self._evaluation.origins(shard), *mined)

    @property
    @override
    def calibrated_facts(self) -> frozenset[str]:
        """Facts that tau and eta were fitted on."""
        rows = (*self._rows, *self._calibration_rows)
        return frozenset(row.meta["fact"] for row in rows)

    # What a judge reads; see `mmemb.storage.protocols.JudgeData`.

    def scores_folder(self) -> Path:
        """The folder of the scores; of a development run a temporary one."""
        return Path(self._temporary.name) if self._num_dev_batches else self._scores

    def judge_settings(self) -> Mapping[str, Any]:
        """Settings that decide what is judged, beside the content of `judge_origins`."""
        keys = [row.entry.key for row in (*self._rows, *self._calibration_rows)]
        return {
            "batch_size": self._batch_size,
            "num_negatives": self._num_negatives,
            "features": self._features,
            # The same shard of queries may be asked for other tasks.
            "rows": f"{stable_hash(*keys, bits=64):016x}",
        }

    def judge_origins(self) -> Mapping[str, tuple[Origin, ...]]:
        """Shard of the scores -> the shards and folders that it is made from."""
        of_queries = {
            shard: (
                rows[0].index.origin(shard),
                *self._query_drafts.origins(shard),
                *self._evaluation.origins(shard),
            )
            for shard, rows in by_shard(self._calibration_rows).items()
        }

        return {**self.origins(), **of_queries}

    def judge_loader(self, shards: Sequence[str]) -> FiniteLoader:
        """Batches of whole shards with all candidates, one shard after the other."""
        rows = by_shard((*self._rows, *self._calibration_rows))
        chunks = chunks_of({shard: rows[shard] for shard in shards}, self._batch_size)
        return FiniteLoader(chunks, self._judge_batch, num_workers=self._num_workers)

    def _judge_batch(self, chunk: Chunk) -> Item:
        # Queries and pairs lie in shards of different names.
        if chunk.rows[0].index is self._evaluation.query_index:
            return self._query_batch(chunk), ()
        return self._pair_batch(chunk), ()

    # What the steps read.

    @override
    def train_dataloader(self) -> FiniteLoader:
        # One batch with everything, the same on every rank: a fit takes seconds.
        return FiniteLoader([Chunk("", ())], self._all_scores)

    def _all_scores(self, _: Chunk) -> Item:
        table = ScoreTable(self.scores_folder())
        calibration, pairs = (
            tuple(
                table.read([row.entry.key for row in chunk.rows])
                for chunk in chunks_of(by_shard(rows), self._batch_size)
            )
            for rows in (self._calibration_rows, self._rows)
        )

        return SelectionScores(calibration, pairs), ()

    @override
    def predict_dataloader(self) -> FiniteLoader:
        chunks = self.predict_chunks(self._batch_size)
        return self._judged_loader(self._drafts, chunks)

    @override
    def test_dataloader(self) -> FiniteLoader:
        if self._selected is None:
            raise ValueError("`test` reads what was selected: set data.selected to its folder.")

        # Checked first: scores of other rationales may fit in shape, and be wrong.
        table = self._table(self._selected)
        self._check_selected(ShardIndex.open(self._selected))

        rank, world = self.place
        chunks = chunks_of(by_shard(self._rows), self._batch_size)
        return self._judged_loader(table, chunks[rank::world])

    def _check_selected(self, selected: ShardIndex) -> None:
        """Raises ValueError if other rationales were selected than were judged."""
        for shard, record in selected.records.items():
            made_from = {origin.sha256 for origin in record.made_from}
            if not made_from.issuperset(o.sha256 for o in self._drafts.origins(shard)):
                raise ValueError(
                    f"Shard {selected.folder / shard} was not selected from {self._rationales}, "
                    "which was judged. Run `predict` of the selection again."
                )

    def _judged_loader(self, table: RationaleTable, chunks: Sequence[Chunk]) -> FiniteLoader:
        build = partial(self._judged_batch, table, ScoreTable(self.scores_folder()))
        return FiniteLoader(chunks, build, self.place[1], self._num_workers)

    def _judged_batch(self, table: RationaleTable, scores: ScoreTable, chunk: Chunk) -> Item:
        # No candidates, and no pixels: a judge has looked at them.
        batch = self._read_pairs(SampleReader(pixels=False), table, chunk)
        judged = JudgedPairs(batch, scores.read([pair.key for pair in batch.pairs]))
        judged.check_pools(table.folder)
        return judged, ()

    @override
    def teardown(self, stage: str) -> None:
        super().teardown(stage)

        # A development run judges a few rows, so its scores must not be found by a later run.
        if self._num_dev_batches:
            self._temporary.cleanup()

    @cached_property
    def _temporary(self) -> TemporaryDirectory[str]:
        return TemporaryDirectory(prefix="mmemb-judge-scores-")

    @property
    def _num_dev_batches(self) -> int:
        """Batches of a development run, which judges no more than these; 0 = no such run."""
        return int(self.trainer.fast_dev_run) if self.trainer else 0

    def _cut(self, rows: tuple[Row, ...]) -> tuple[Row, ...]:
        """The rows that a run reads: all, or the first ones of a development run."""
        return rows[: self._num_dev_batches * self._batch_size] if self._num_dev_batches else rows

    @cached_property
    def _rows(self) -> tuple[Row, ...]:
        return self._cut(self.open_rows(self._pairs))

    @cached_property
    def _drafts(self) -> RationaleTable:
        """Rationales about the pairs."""
        return self._table(self._rationales)

    @cached_property
    def _query_drafts(self) -> RationaleTable:
        """Rationales about the calibration queries."""
        return RationaleTable(self._rationales, [row.index for row in self._calibration_rows[:1]])

    @cached_property
    def _reader(self) -> SampleReader:
        return SampleReader(FeatureTable(self._features) if self._features else None)

    @cached_property
    def _evaluation(self) -> EvaluationRows:
        return EvaluationRows(self.root, self._batch_size, features=self._features)

    @cached_property
    def _calibration_rows(self) -> tuple[Row, ...]:
        """Calibration queries of the tasks that the pairs belong to."""
        # Pairs may belong to tasks that the benchmark does not rank: these have no queries.
        tasks = {row.meta["task"] for row in self._rows}
        tasks &= {task.name for task in self._evaluation.tasks}
        return self._cut(self._evaluation.select(["calibration"], tasks))

    def _table(self, sidecar: str) -> RationaleTable:
        return RationaleTable(sidecar, {id(r.index): r.index for r in self._rows}.values())

    @cached_property
    def _galleries(self) -> Mapping[str, Sequence[Candidate]]:
        """All candidates by gallery; read once, they are what every pair is ranked among."""
        galleries: dict[str, list[Candidate]] = {}
        wanted = {row.meta["gallery"] for row in self._rows if "gallery" in row.meta}
        wanted |= {row.meta["gallery"] for row in self._calibration_rows}
        # The index of pairs need not name the gallery; the pair itself does.
        wanted |= {self._reader.pair(row).gallery for row in self._rows}

        for row in self._evaluation.candidates:
            if row.meta["gallery"] in wanted:
                galleries.setdefault(row.meta["gallery"], []).append(self._reader.candidate(row))
        return galleries

    def _read_pairs(
        self, reader: SampleReader, table: RationaleTable, chunk: Chunk
    ) -> PairRowBatch:
        return PairRowBatch(
            chunk.shard,
            tuple(reader.pair(row) for row in chunk.rows),
            tuple(table.read(row) for row in chunk.rows),
            marks=tuple(map(table.mark, chunk.rows)),
        )

    def _pair_batch(self, chunk: Chunk) -> PairRowBatch:
        batch = self._read_pairs(self._reader, self._drafts, chunk)

        # The draw of step 0 in every run, so that a pair is always judged against the same ones.
        mined = [self._mined.draw(row, 0) if self._mined else () for row in chunk.rows]
        return replace(batch, candidates=tuple(map(self._candidates, batch.pairs, mined)))

    def _query_batch(self, chunk: Chunk) -> PairRowBatch:
        pairs = tuple(self._as_pair(self._evaluation.read_query(row)) for row in chunk.rows)
        rationales = tuple(self._query_drafts.read(row) for row in chunk.rows)
        return PairRowBatch(chunk.shard, pairs, rationales, tuple(map(self._candidates, pairs)))

    def _as_pair(self, query: Query) -> Pair:
        """A query with its first right candidate, so that a judge can rank it like a pair."""
        positives = tuple(query.relevance)
        named = {c.name: c.side for c in self._galleries[query.gallery]}

        return Pair(
            key=query.key,
            task=query.task,
            split=query.split,
            concept=query.concept,
            fact=query.fact,
            source="",
            gallery=query.gallery,
            query=query.side,
            target=named[positives[0]],
            target_name=positives[0],
            positives=positives,
            answers=query.answers,
        )

    @cached_property
    def _mined(self) -> NegativeTable | None:
        if self._negatives is None or self._num_negatives is None:
            return None

        # By identity: rows of one folder share one index, which must be joined once.
        sources = {id(row.index): row.index for row in self._rows}.values()
        return NegativeTable(
            self._negatives, sources, self.root, self._reader, self._num_negatives, seed=0
        )

    def _candidates(self, pair: Pair, mined: Sequence[Candidate] = ()) -> tuple[Side, ...]:
        """The target, then wrong candidates of its gallery: all, or mined ones and some others."""
        if pair.gallery not in self._galleries:
            raise ValueError(
                f"Pair {pair.key}: its gallery {pair.gallery!r} is not in {self.root / CANDIDATES} "
                f"(there are {sorted(self._galleries)}). Prepare the data again."
            )

        right = {pair.target_name, *pair.positives}
        wrong = [c for c in self._galleries[pair.gallery] if c.name not in right]

        # Mined ones first; a hash orders the others, so that every run judges the same.
        if self._num_negatives is not None:
            hard = [c for c in mined if c.name not in right]
            names = {c.name for c in hard}

            wrong = sorted(wrong, key=lambda c: stable_hash("judged", pair.key, c.name))
            wrong = [*hard, *(c for c in wrong if c.name not in names)][: self._num_negatives]
        return (pair.target, *(c.side for c in wrong))
