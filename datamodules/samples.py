"""Members of a sample into records: pairs, queries, candidates, sides and their media."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeVar, final

from torch import Tensor

from datamodules.data_roots import parse_query
from datamodules.decode import ADVICE, DecodeError, decode_array, decode_image, decode_json
from datamodules.sample_json import CandidateJson, PairJson, QueryJson, QuerySideJson, check_index
from mmemb.records.inputs import Media, Side
from mmemb.records.pairs import Candidate, Pair, Query
from mmemb.records.schema import Excerpt, Schema
from mmemb.records.text import has_text
from mmemb.storage.manifests import IndexEntry
from mmemb.storage.shard_index import ShardIndex

_MEDIA = re.compile(r"([qtc])([0-9]{1,6})(?:\.([0-9]{1,6}))?\.(?:webp|png|jpe?g)")
_CONTENT = re.compile(
    r"([qtc])[0-9]*(?:\..*)?"  # of one side
    r"|(?:.*\.)?(?:webp|png|jpe?g|gif|bmp|tiff?|avif|heic|jxl|svg|mp4|m4v|mov|mkv|webm|avi)",
    re.DOTALL,
)
"""Names of members with content; one that is no `_MEDIA` would not be read."""

_Record = TypeVar("_Record")
_Json = TypeVar("_Json", bound=Schema | Excerpt)


@dataclass(frozen=True, slots=True)
class Row:
    """A sample and the folder that it lies in."""

    index: ShardIndex
    entry: IndexEntry

    @property
    def where(self) -> str:
        """Name of the sample in errors."""
        return f"Shard {self.index.folder / self.entry.shard}, sample {self.entry.key}"

    @property
    def meta(self) -> Mapping[str, str]:
        """Fields of the index entry: split, task, concept, fact, ..."""
        return self.entry.meta


@dataclass(frozen=True, slots=True)
class Members:
    """The bytes of a sample as far as they were read, the names of all of its members, the digests
    of all of its media, and the `meta` of its index entry."""

    key: str
    where: str
    names: tuple[str, ...]
    data: Mapping[str, bytes]
    media: Mapping[str, str] = field(default_factory=dict)
    meta: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_bytes(cls, key: str, where: str, data: Mapping[str, bytes]) -> Members:
        """A sample that came without an index: digests are computed here."""
        media = {k: hashlib.sha256(v).hexdigest() for k, v in data.items() if _MEDIA.fullmatch(k)}
        return cls(key, where, tuple(data), data, media)


def rows_of(index: ShardIndex) -> tuple[Row, ...]:
    """All samples of a folder."""
    return tuple(Row(index, entry) for entry in index.entries)


@final
class FeatureTable:
    """`features/`: tokens of a frozen tower, by the digest of the picture's bytes."""

    def __init__(self, folder: Path | str) -> None:
        self._index = ShardIndex.open(folder)

    def read(self, digest: str, where: str) -> Tensor:
        """Returns the tokens (T, F) of a picture.

        Raises:
            DecodeError: the tower has not seen this picture, or its tokens are broken.
        """
        entry = self._index.by_key.get(digest)
        if entry is None:
            raise DecodeError(
                f"{where}: {self._index.folder} holds no features of this picture ({digest}).",
                "Make the features again from this data, or leave out `features`.",
            )

        return decode_array(
            self._index.read(entry, {"npy"})["npy"], f"{self._index.folder / entry.shard} {digest}"
        )


@final
class SampleReader:
    """Reads records; a side gets features if there is a table, else pixels if wanted.

    Args:
        features: table of cached features; then no image is read.
        pixels: False leaves media as digests only.
    """

    def __init__(self, features: FeatureTable | None = None, pixels: bool = True) -> None:
        self._features = features
        # Features replace pixels: nothing is decoded where a tower has seen the picture.
        self._pixels = pixels and features is None

    def pair(self, row: Row) -> Pair:
        """A sample of `pairs/`."""
        return self.pair_of(self._members(row, "qt"))

    def query(self, row: Row) -> Query:
        """A sample of `queries/`; its gallery stands in the index."""
        return _checked(self._query, self._members(row, "q"))

    def candidate(self, row: Row) -> Candidate:
        """A sample of `candidates/`."""
        return _checked(self._candidate, self._members(row, "c"))

    def query_side(self, row: Row) -> Side:
        """The one side that a writer may see: the query's, of a pair or query."""
        return _checked(self._query_side, self._members(row, "q"))

    def target_side(self, row: Row) -> Side:
        """The target's side of a pair, and no more."""
        return _checked(self._target_side, self._members(row, "t"))

    def candidate_side(self, row: Row) -> Side:
        """The side of a sample of `candidates/`, without its name."""
        return self.candidate(row).side

    def pair_of(self, members: Members) -> Pair:
        """A pair from the members of one sample."""
        return _checked(self._pair, members)

    def _members(self, row: Row, sides: str) -> Members:
        # Media of the other side are not even read: a writer for one side must not see the other.
        wanted = {"json", "candidates.npy"}
        if self._pixels:
            wanted |= {name for name in row.entry.members if name[:1] in sides}
        data = row.index.read(row.entry, wanted)
        entry = row.entry
        return Members(entry.key, row.where, tuple(entry.members), data, entry.media, row.meta)

    def _pair(self, members: Members) -> Pair:
        # Texts and names stand in the JSON, pictures and frames are members beside it.
        data = _json(members, PairJson)
        return Pair(
            key=members.key,
            task=data.task,
            split=data.split,
            concept=data.concept,
            fact=data.fact,
            source=data.source,
            gallery=data.gallery,
            query=self._side(members, "q", data.text, data.instruction),
            target=self._side(members, "t", data.target_text, data.target_instruction),
            target_name=data.target_name,
            positives=data.positives,
            answers=data.answers,
        )

    def _query(self, members: Members) -> Query:
        data = _json(members, QueryJson)
        side = self._side(members, "q", data.text, data.instruction)

        # Most tasks rank a whole gallery; only some queries list candidates of their own.
        listed = members.data.get("candidates.npy")
        if listed is None:
            return parse_query(members.key, data, members.meta, side, None)
        rows_C = decode_array(listed, f"{members.where}, member candidates.npy")
        return parse_query(members.key, data, members.meta, side, rows_C.numpy())

    def _candidate(self, members: Members) -> Candidate:
        data = _json(members, CandidateJson)
        side = self._side(members, "c", data.text, data.instruction)
        return Candidate(members.key, data.name, data.gallery, side)

    def _query_side(self, members: Members) -> Side:
        # A schema without the target's fields, so that they are not even parsed.
        data = _json(members, QuerySideJson)
        return self._side(members, "q", data.text, data.instruction)

    def _target_side(self, members: Members) -> Side:
        data = _json(members, PairJson)
        return self._side(members, "t", data.target_text, data.target_instruction)

    def _side(self, members: Members, side: str, text: str, instruction: str) -> Side:
        named = whole_media_of(members.names, side)
        content = Side(text, instruction, tuple(self._media(members, *media) for media in named))

        # An empty side would be embedded all the same, as a vector of the instruction alone.
        if not (content.media or has_text(text)):
            raise DecodeError(
                f"{members.where}: side {side} is empty: expected text, pictures or both.", ADVICE
            )

        return content

    def _media(self, members: Members, name: str, kind: Literal["image", "frame"]) -> Media:
        digest, where = members.media[name], f"{members.where}, member {name}"
        if self._features is not None:
            return Media(kind, digest, features=self._features.read(digest, where))
        pixels = decode_image(members.data[name], where) if self._pixels else None
        return Media(kind, digest, pixels)


def media_of(names: Iterable[str], side: str) -> list[tuple[str, Literal["image", "frame"]]]:
    """The media members of a side in order, with their kind.

    >>> media_of(["t0.webp", "q1.webp", "q0.001.webp", "q0.000.webp"], "q")
    [('q0.000.webp', 'frame'), ('q0.001.webp', 'frame'), ('q1.webp', 'image')]
    """
    matches = [(m, name) for name in names if (m := _MEDIA.fullmatch(name)) and m[1] == side]
    # By number, since names sort "q10" before "q2".
    matches.sort(key=lambda pair: (int(pair[0][2]), int(pair[0][3] or 0)))
    return [(name, "frame" if match[3] else "image") for match, name in matches]


@lru_cache(4096)  # most samples of a data set have members of equal names
def whole_media_of(
    names: tuple[str, ...], side: str
) -> tuple[tuple[str, Literal["image", "frame"]], ...]:
    """`media_of` of a sample that has lost nothing.

    Args:
        names: names of all members.
        side: `q`, `t` or `c`.

    Raises:
        ValueError: a picture has a name that is not read, or the numbers have a hole.

    >>> whole_media_of(("json", "t1.webp", "t0.png"), "t")
    (('t0.png', 'image'), ('t1.webp', 'image'))
    """
    others = {"q": "c", "t": "c", "c": "qt"}[side]  # no sample holds a candidate and another side

    for name in names:
        content = _CONTENT.fullmatch(name)
        if (
            content
            and (content[1] or side) in side + others
            and not (content[1] == side and _MEDIA.fullmatch(name))
        ):
            raise ValueError(
                f"member {name!r:.99} is no picture that is read: expected names such as "
                f"{side}0.webp, {side}0.000.png, {side}1.jpg."
            )

    media = media_of(names, side)
    frames: dict[int, list[int | None]] = {}
    for match in filter(None, (_MEDIA.fullmatch(name) for name, _ in media)):
        frames.setdefault(int(match[2]), []).append(int(match[3]) if match[3] else None)

    # A hole means that a member was lost: an image stands alone, frames count from 0.
    is_whole = all(held in ([None], [*range(len(held))]) for held in frames.values())
    if list(frames) != [*range(len(frames))] or not is_whole:
        raise ValueError(
            f"side {side} has the pictures {', '.join(name for name, _ in media):.99}: expected "
            f"{side}0, {side}1, ... without a hole, each of them once or as frames from 0 on."
        )
    return tuple(media)


def foreign_names(names: Iterable[str]) -> list[str]:
    """Members of a sample that are neither its JSON nor of a side, so that they are not read.

    >>> foreign_names(["json", "q0.webp", "cls"])
    ['cls']
    """
    fixed_names = ("json", "candidates.npy")
    return [name for name in names if name not in fixed_names and not _CONTENT.fullmatch(name)]


def _json(members: Members, kind: type[_Json]) -> _Json:
    """The JSON of a sample, which agrees with its index."""
    if "json" not in members.data:
        raise DecodeError(f"{members.where} lacks its member json.", ADVICE)
    data = decode_json(members.data["json"], kind, f"{members.where}, member json")
    # Rows are chosen by the index, so a sample that differs from it would be in the wrong split.
    check_index(data, members.meta)
    return data


def _checked(read: Callable[[Members], _Record], members: Members) -> _Record:
    try:
        return read(members)
    except DecodeError:
        raise
    except ValueError as error:
        # Faults that a record finds itself; `on_error` is about DecodeError alone.
        raise DecodeError(f"{members.where}: {error}", ADVICE) from None
