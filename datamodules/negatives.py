"""Mined hard negatives, joined with their pairs by key, and the draw of those to train on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from random import Random
from typing import final

from datamodules.data_roots import CANDIDATES
from datamodules.samples import Row, SampleReader, rows_of
from datamodules.sidecars import join_whole, read_row
from mmemb.records.hashing import stable_hash
from mmemb.records.pairs import Candidate
from mmemb.records.sidecar_json import NegativeJson
from mmemb.storage.manifests import Origin
from mmemb.storage.shard_index import ShardIndex


@final
class NegativeTable:
    """`negatives/`: hard candidates by the pair that they are wrong for.

    Args:
        folder: the sidecar.
        sources: folders of pairs; each is covered whole or not at all.
        root: the data set, whose candidate table the sidecar's rows point into.
        reader: reads candidates.
        num: number of negatives drawn for a pair and step.
        seed: seed of the draws.

    Raises:
        ValueError: the sidecar was mined from other pairs.
    """

    def __init__(
        self,
        folder: Path | str,
        sources: Iterable[ShardIndex],
        root: Path,
        reader: SampleReader,
        num: int,
        seed: int,
    ) -> None:
        if num < 1:
            raise ValueError(f"num_negatives {num}: expected 1 or more.")
        self._index, self._root, self._reader = ShardIndex.open(folder), root, reader
        self.num, self._seed = num, seed
        self._shards: set[str] = set()
        for source in sources:
            self._shards |= join_whole(source, self._index)

    @cached_property
    def _rows(self) -> Sequence[Row]:
        return rows_of(ShardIndex.open(self._root / CANDIDATES))

    def origins(self, shard: str) -> tuple[Origin, ...]:
        """The sidecar's shard of a source's shard, or nothing if that is not covered."""
        return (self._index.origin(shard),) if shard in self._shards else ()

    def draw(self, row: Row, step: int) -> tuple[Candidate, ...]:
        """`num` of the row's negatives, equal for equal (step, key); fewer if there are fewer."""
        if row.entry.shard not in self._shards:
            return ()
        entry = self._index.by_key[row.entry.key]
        where = f"Shard {self._index.folder / entry.shard}, sample {entry.key}, member json"
        mined = read_row(self._index, entry.key, tuple[NegativeJson, ...])

        # Seeded by step and key, so that a resumed run draws the same ones.
        random = Random(stable_hash(self._seed, "negatives", step, row.entry.key))
        chosen = random.sample(mined, min(self.num, len(mined)))
        return tuple(self._candidate(item.row, item.name, where) for item in chosen)

    def _candidate(self, number: int, name: str, where: str) -> Candidate:
        # In a table that was made again a row number may point at another candidate.
        item = self._reader.candidate(self._rows[number]) if number < len(self._rows) else None
        if item is None or int(item.key) != number or item.name != name:
            raise ValueError(
                f"{where}: candidate {number} should be {name!r}, but {self._root / CANDIDATES} "
                f"has {item.name if item else 'no such row'!r} there. The negatives were mined "
                "from other data: run the step that makes them again."
            )
        return item
