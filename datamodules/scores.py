"""ScoreTable: a judge's scores of pairs and calibration queries, read by key."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import final

from datamodules.decode import decode_array
from mmemb.selection.pair_scores import PairScores, ScoredPair
from mmemb.storage.shard_index import ShardIndex


@final
class ScoreTable:
    """Reads the sidecar that `mmemb.selection.score_shards` writes.

    Args:
        folder: the sidecar.
    """

    def __init__(self, folder: Path | str) -> None:
        self._index = ShardIndex.open(folder)

    def read(self, keys: Iterable[str]) -> PairScores:
        """The scores of a batch of rows, in order."""
        entries = [self._index.by_key[key] for key in keys]

        rows = []
        for entry in entries:
            where = f"Shard {self._index.folder / entry.shard}, sample {entry.key}"
            members = self._index.read(entry)

            score_CR, comparable_KJ = (
                decode_array(members[name], f"{where}, member {name}")
                for name in ("scores.npy", "comparable.npy")
            )
            rows.append(ScoredPair(score_CR, comparable_KJ))

        # One judge made the whole sidecar, so the first row's kind is that of all.
        return PairScores.stack(rows, entries[0].meta["kind"])
