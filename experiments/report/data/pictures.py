"""Pictures of candidates and queries, out of the shards, as data URLs."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, final

from datamodules.sample_json import CandidateJson
from datamodules.samples import media_of, rows_of
from experiments.report.data.reasoned import read_pair, read_query
from mmemb.media.pictures import SHARD_FORMATS, PictureError, read_picture
from mmemb.records.pairs import Pair, Query
from mmemb.storage.manifests import IndexEntry
from mmemb.storage.shard_index import ShardIndex

MEDIA_TYPES = {"webp": "image/webp", "png": "image/png", "jpg": "image/jpeg", "jpeg": "image/jpeg"}

_MOST_BYTES, _LONGEST_SIDE = 200_000, 768
"""Bytes up to which a page holds a picture as it is; pixels to which larger ones are reduced."""

_MOST_PICTURES = 3
"""Pictures of one side, or first frames of its clip, that a page shows."""

LONGEST_QUERY, _LONGEST_LABEL = 400, 160
"""Letters of a query and of a candidate's text that a page shows; a document may have thousands."""


@final
@dataclass(frozen=True, slots=True)
class Shown:
    """One candidate as a page shows it.

    Attributes:
        label: its name in words.
        pictures: addresses of its first pictures; empty if it has none.
        media: words for several of them, such as `clip of 8 frames`; or empty.
    """

    label: str
    pictures: tuple[str, ...] = ()
    media: str = ""

    @property
    def picture(self) -> str:
        """The first picture, or ""."""
        return self.pictures[0] if self.pictures else ""


@final
class CandidatePictures:
    """Finds a candidate's picture by gallery and name.

    Args:
        index: `candidates/` of the data root.
        labels: (gallery, name) -> what people call it; others go by their text, or name.
    """

    def __init__(self, index: ShardIndex, labels: Mapping[tuple[str, str], str]) -> None:
        self._index, self._labels = index, labels
        self._entries: dict[tuple[str, str], IndexEntry] = {}
        for entry in index.entries:
            # Of equal names the first row counts, as in evaluation.
            self._entries.setdefault((entry.meta["gallery"], entry.meta["name"]), entry)

    @classmethod
    def open(cls, root: Path, pairs: Sequence[Path] = ()) -> Self:
        """Opens the candidates of a data root, named by answers of its queries and pairs.

        Args:
            root: the prepared data.
            pairs: folders of pairs.
        """
        queries = map(read_query, rows_of(ShardIndex.open(root / "queries")))
        asked = (read_pair(row) for folder in pairs for row in rows_of(ShardIndex.open(folder)))
        return cls(ShardIndex.open(root / "candidates"), label_table(queries, asked))

    def find(self, gallery: str, name: str) -> Shown:
        """Returns the first row of that name; a candidate that is missing has no picture."""
        entry = self._entries.get((gallery, name))
        label = self._labels.get((gallery, name), "")

        if entry is None:
            return Shown(label or name)

        if not label:
            label = self._index.read_json(entry, CandidateJson).text or name
        return shown(shortened(label, _LONGEST_LABEL), self._index, entry, "c")


def label_table(queries: Iterable[Query], pairs: Iterable[Pair]) -> dict[tuple[str, str], str]:
    """Returns (gallery, candidate) -> the first answer of a query with that one right candidate,
    or of a pair of which it is the target."""
    labels: dict[tuple[str, str], str] = {}

    # With several right candidates an answer would name only one of them.
    for query in queries:
        if len(query.relevance) == 1 and query.answers:
            labels.setdefault((query.gallery, next(iter(query.relevance))), query.answers[0])

    for pair in pairs:
        if pair.answers:
            labels.setdefault((pair.gallery, pair.target_name), pair.answers[0])
    return labels


def shown(label: str, index: ShardIndex, entry: IndexEntry, side: str) -> Shown:
    """Returns one side of a sample as a page shows it.

    Args:
        label: words for it.
        index: where the sample lies.
        entry: the sample.
        side: `q`, `t` or `c`, as the members' names begin.
    """
    media = media_of(entry.members, side)
    names = [name for name, _ in media[:_MOST_PICTURES]]
    data = index.read(entry, set(names)) if names else {}
    urls = [url for name in names if (url := _small_url(name, data[name]))]

    is_clip = any(kind == "frame" for _, kind in media)
    words = f"clip of {len(media)} frames" if is_clip else f"{len(media)} pictures"
    return Shown(label, tuple(urls), words if len(media) > 1 else "")


def shortened(text: str, longest: int) -> str:
    """Returns a text, or its beginning with an ellipsis.

    >>> shortened("a bar", 5), shortened("a red bar", 5)
    ('a bar', 'a re…')
    """
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def data_url(file_name: str, data: bytes) -> str:
    """Returns a picture's bytes as an address that needs no network.

    >>> data_url("c0.webp", b"abc")
    'data:image/webp;base64,YWJj'
    """
    media_type = MEDIA_TYPES[file_name.rsplit(".", 1)[-1]]
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def _small_url(name: str, data: bytes) -> str:
    """Returns a picture as it is, or reduced: a page may hold hundreds of them."""
    if len(data) <= _MOST_BYTES:
        return data_url(name, data)
    try:
        rgb = read_picture(data, SHARD_FORMATS, name, _LONGEST_SIDE)
    except PictureError:
        return ""

    reduced = io.BytesIO()
    rgb.save(reduced, "WEBP", quality=90)
    return data_url("reduced.webp", reduced.getvalue())
