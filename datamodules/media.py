"""MediaDataModule: every distinct picture of a data set once, for the feature cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, final

from typing_extensions import override

from datamodules.decode import DecodeError, OnError, decode_image
from datamodules.loaders import Chunk, FiniteLoader, ShardDataModule, by_shard
from datamodules.samples import Row, media_of
from datamodules.stream import Item
from mmemb.records.batches import MediaBatch
from mmemb.records.inputs import Media
from mmemb.storage.shard_index import ShardIndex


@dataclass(frozen=True, slots=True)
class Picture:
    """Place of a picture: its row and the name of its member."""

    row: Row
    name: str
    kind: Literal["image", "frame"]

    @property
    def index(self) -> ShardIndex:
        """The folder that it lies in."""
        return self.row.index

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of its bytes."""
        return self.row.entry.media[self.name]


@final
class MediaDataModule(ShardDataModule):
    """Pictures for `predict`; one that occurs in several shards belongs to the first of them.

    Args:
        root: the data set.
        folders: below the root, in the order in which shards claim pictures.
        batch_size: pictures of a batch.
        image_size: longest side; larger pictures are reduced to it. None hands out every pixel.
        on_error: `raise`, or `skip` with a warning that counts and names the pictures.
        num_workers: processes that read ahead.
    """

    def __init__(
        self,
        root: str,
        folders: list[str],
        batch_size: int,
        image_size: int | None = None,
        on_error: OnError = "raise",
        num_workers: int = 0,
    ) -> None:
        super().__init__(root)
        self._folders, self._batch_size, self._image_size = folders, batch_size, image_size
        self._on_error, self._num_workers = on_error, num_workers

    @override
    def shard_rows(self) -> Mapping[str, Sequence[Picture]]:
        return self._pictures

    @override
    def shard_sizes(self) -> Mapping[str, int]:
        # Which pictures are broken is known only when they have been decoded.
        return super().shard_sizes() if self._on_error == "raise" else {}

    @override
    def predict_dataloader(self) -> FiniteLoader:
        chunks = self.predict_chunks(self._batch_size)
        return FiniteLoader(chunks, self._batch, self.place[1], self._num_workers)

    @cached_property
    def _pictures(self) -> dict[str, list[Picture]]:
        # One picture may occur in many rows, but the tower looks at each digest once.
        seen: set[str] = set()
        pictures: dict[str, list[Picture]] = {}
        for shard, rows in by_shard(self.open_rows(self._folders)).items():
            for picture in (picture for row in rows for picture in _pictures_of(row)):
                if picture.digest not in seen:
                    seen.add(picture.digest)
                    pictures.setdefault(shard, []).append(picture)
        return pictures

    def _batch(self, chunk: Chunk) -> Item:
        media, problems = [], []

        for picture in chunk.rows:
            try:
                media.append(self._decode(picture))
            except DecodeError as error:
                if self._on_error == "raise":
                    raise
                problems.append(error.problem)

        # A batch without any picture is no batch: the loader passes None over.
        return MediaBatch(chunk.shard, tuple(media)) if media else None, tuple(problems)

    def _decode(self, picture: Picture) -> Media:
        data = picture.row.index.read(picture.row.entry, {picture.name})[picture.name]
        where = f"{picture.row.where}, member {picture.name}"
        return Media(picture.kind, picture.digest, decode_image(data, where, self._image_size))


def _pictures_of(row: Row) -> list[Picture]:
    return [
        Picture(row, name, kind) for side in "qtc" for name, kind in media_of(row.entry.media, side)
    ]
