"""SelectionDataModule: pairs with their candidate rationales and the candidates to rank among."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import ClassVar, final

from typing_extensions import override

from datamodules.evaluation import EvaluationRows
from datamodules.loaders import Chunk, FiniteLoader, ShardDataModule, by_shard, chunks_of
from datamodules.negatives import NegativeTable
from datamodules.samples import FeatureTable, Row, SampleReader
from datamodules.sidecars import RationaleTable
from datamodules.stream import Item
from mmemb.benchmarks.data_roots import CANDIDATES
from mmemb.records.batches import PairRowBatch
from mmemb.records.hashing import stable_hash
from mmemb.records.inputs import Side
from mmemb.records.pairs import Candidate, Pair, Query
from mmemb.storage.manifests import Origin


@final
class SelectionDataModule(ShardDataModule):
    """What a judge needs to see (METHOD 5).

    `fit` reads the pairs once (eta) and, to validate, the queries of part `calibration` that ask
    for the same tasks (tau); `predict` reads the pairs; `test` the pairs as selected.

    Args:
        root: the data set.
        rationales: folder of what stage 1 wrote, for pairs and queries.
        batch_size: pairs of a batch; donors of foreign rationales come from the same batch.
        pairs: folders of pairs below `<root>/pairs`.
        selected: folder of what `predict` wrote, read by `test`.
        features: folder of cached features, or None to decode images.
        num_workers: processes that read ahead.
        num_negatives: how many wrong candidates a pair is judged against, the same ones always;
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
        self._batch_size, self._features = batch_size, features
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

    @override
    def train_dataloader(self) -> FiniteLoader:
        # As many batches on every rank, if need be without pairs, or Lightning's fit would hang.
        return self._pair_loader(self._rows, self._rationales, even=True)

    @override
    def val_dataloader(self) -> FiniteLoader:
        rank, world = self.place
        chunks = chunks_of(by_shard(self._calibration_rows[rank::world]), self._batch_size)
        table = RationaleTable(self._rationales, [row.index for row in self._calibration_rows[:1]])
        return FiniteLoader(chunks, partial(self._query_batch, table), world, self._num_workers)

    @override
    def predict_dataloader(self) -> FiniteLoader:
        chunks = self.predict_chunks(self._batch_size)
        return FiniteLoader(
            chunks, partial(self._pair_batch, self._drafts), self.place[1], self._num_workers
        )

    @override
    def test_dataloader(self) -> FiniteLoader:
        if self._selected is None:
            raise ValueError("`test` reads what was selected: set data.selected to its folder.")
        return self._pair_loader(self._rows, self._selected)

    def _pair_loader(
        self, rows: Sequence[Row], sidecar: str, *, even: bool = False
    ) -> FiniteLoader:
        rank, world = self.place
        build = partial(self._pair_batch, self._table(sidecar))
        chunks = chunks_of(by_shard(rows), self._batch_size)
        chunks += [Chunk("", ())] * (-len(chunks) % world) if even else []
        return FiniteLoader(chunks[rank::world], build, world, self._num_workers)

    @cached_property
    def _rows(self) -> tuple[Row, ...]:
        return self.open_rows(self._pairs)

    @cached_property
    def _drafts(self) -> RationaleTable:
        """Rationales that stage 1 wrote about the pairs."""
        return self._table(self._rationales)

    @cached_property
    def _reader(self) -> SampleReader:
        return SampleReader(FeatureTable(self._features) if self._features else None)

    @cached_property
    def _evaluation(self) -> EvaluationRows:
        return EvaluationRows(self.root, self._batch_size, features=self._features)

    @cached_property
    def _calibration_rows(self) -> tuple[Row, ...]:
        """Calibration queries of the tasks that the pairs belong to."""
        tasks = {row.meta["task"] for row in self._rows}
        return self._evaluation.select(["calibration"], tasks & self._known_tasks)

    @property
    def _known_tasks(self) -> frozenset[str]:
        return frozenset(task.name for task in self._evaluation.tasks)

    def _table(self, sidecar: str) -> RationaleTable:
        return RationaleTable(sidecar, {id(r.index): r.index for r in self._rows}.values())

    @cached_property
    def _galleries(self) -> Mapping[str, Sequence[Candidate]]:
        """All candidates by gallery; read once, they are what every pair is ranked among."""
        galleries: dict[str, list[Candidate]] = {}
        wanted = {row.meta["gallery"] for row in self._rows if "gallery" in row.meta}
        wanted |= {row.meta["gallery"] for row in self._calibration_rows}
        wanted |= {self._reader.pair(row).gallery for row in self._rows}
        for row in self._evaluation.candidates:
            if row.meta["gallery"] in wanted:
                galleries.setdefault(row.meta["gallery"], []).append(self._reader.candidate(row))
        return galleries

    def _pair_batch(self, table: RationaleTable, chunk: Chunk) -> Item:
        pairs = tuple(self._reader.pair(row) for row in chunk.rows)
        rationales = tuple(table.read(row) for row in chunk.rows)
        mined = [self._mined.draw(row, 0) if self._mined else () for row in chunk.rows]
        candidates = tuple(map(self._candidates, pairs, mined))
        marks = tuple(map(table.mark, chunk.rows))
        return PairRowBatch(chunk.shard, pairs, rationales, candidates, marks), ()

    def _query_batch(self, table: RationaleTable, chunk: Chunk) -> Item:
        pairs = tuple(self._as_pair(self._evaluation.read_query(row)) for row in chunk.rows)
        rationales = tuple(table.read(row) for row in chunk.rows)
        candidates = tuple(self._candidates(pair) for pair in pairs)
        return PairRowBatch(chunk.shard, pairs, rationales, candidates), ()

    def _as_pair(self, query: Query) -> Pair:
        """A query with its first right candidate, so that a judge can rank it like a pair."""
        positives = tuple(query.relevance)
        named = {c.name: c.side for c in self._galleries[query.gallery]}
        return Pair(
            key=query.key,
            task=query.task,
            part=query.part,
            concept=query.concept,
            fact=query.fact,
            group="",
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
        if self._num_negatives is not None:
            hard = [c for c in mined if c.name not in right]
            names = {c.name for c in hard}
            wrong = sorted(wrong, key=lambda c: stable_hash("judged", pair.key, c.name))
            wrong = [*hard, *(c for c in wrong if c.name not in names)][: self._num_negatives]
        return (pair.target, *(c.side for c in wrong))
