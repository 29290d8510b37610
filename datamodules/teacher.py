"""A teacher's vectors, joined with their pairs by key."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from datamodules.decode import decode_array
from datamodules.samples import Row
from datamodules.sidecars import check_row, join_whole
from mmemb.storage.shard_index import ShardIndex

MEMBERS = ("query.npy", "target.npy")


@final
class TeacherTable:
    """`teacher/`: vectors of query and target by pair.

    Args:
        folder: the sidecar.
        sources: folders of pairs, all of which it must cover.

    Raises:
        ValueError: it was made from other pairs, or not from all of them.
    """

    def __init__(self, folder: Path | str, sources: Iterable[ShardIndex]) -> None:
        self._index = ShardIndex.open(folder)

        # Pairs without a teacher would train on another loss than the rest.
        for source in sources:
            if not join_whole(source, self._index):
                raise ValueError(
                    f"Sidecar {folder} covers no shard of {source.folder}: every pair that is "
                    "trained on needs its teacher's vectors. Run the step that makes the sidecar "
                    "for these pairs, too, or train on fewer."
                )

    def read(self, row: Row) -> Tensor:
        """(2, E) unit vectors of the row's query and target.

        Raises:
            DecodeError: the teacher could not read the row.
            ValueError: there are no vectors, or none that teach.
        """
        entry = self._index.by_key[row.entry.key]
        where = f"Shard {self._index.folder / entry.shard}, sample {entry.key}"

        check_row(entry, where)
        members = self._index.read(entry, set(MEMBERS))
        if missing := sorted(set(MEMBERS) - set(members)):
            raise ValueError(
                f"{where} lacks {missing[0]}: it is no teacher's sidecar. Run the step that makes "
                f"{self._index.folder} again."
            )

        vectors = [decode_array(members[name], f"{where}, member {name}") for name in MEMBERS]
        for name, vector_E in zip(MEMBERS, vectors, strict=True):
            # Normalised, a vector of zeros would stay one and silently teach nothing.
            if not vector_E.isfinite().all() or not vector_E.any():
                raise ValueError(
                    f"{where}, member {name}: the teacher's vector is zero or not finite. Run the "
                    f"step that makes {self._index.folder} again."
                )

        return torch.nn.functional.normalize(torch.stack(vectors).float(), dim=1)
