"""Rows of the pocket data before pictures are drawn, and their form as shard samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, final

from datamodules.prepare.pocket.art import Picture
from mmemb.storage.shard_writer import Sample, encode_members


@final
@dataclass(frozen=True)
class PairRow:
    """A training pair; the fields are those of `mmemb.records.pairs.Pair`."""

    key: str
    task: str
    concept: str
    fact: str
    source: str
    gallery: str
    target_name: str
    instruction: str = ""
    text: str = ""
    image: Picture | None = None
    target_text: str = ""
    target_image: Picture | None = None
    positives: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    fold: str = ""
    clip: tuple[Picture, ...] = ()
    target_clip: tuple[Picture, ...] = ()

    @property
    def media(self) -> dict[str, Picture]:
        """Pictures to draw for the row, by member."""
        return _media("q", self.image, self.clip) | _media("t", self.target_image, self.target_clip)

    def sample(self, drawn: Mapping[Picture, bytes]) -> Sample:
        """The row as a sample of its folder."""
        data = {
            "task": self.task,
            "split": "train",
            "concept": self.concept,
            "fact": self.fact,
            "source": self.source,
            "gallery": self.gallery,
            "instruction": self.instruction,
            "text": self.text,
            "target_instruction": "",
            "target_text": self.target_text,
            "target_name": self.target_name,
            "answers": list(self.answers),
            "positives": list(self.positives or (self.target_name,)),
        }

        # These labels stand in the index as well: readers filter rows without opening shards.
        meta = {"fold": self.fold} | {
            k: data[k] for k in ("task", "split", "source", "concept", "fact")
        }
        return _sample(self.key, data, self.media, meta, drawn)


@final
@dataclass(frozen=True)
class QueryRow:
    """An evaluation query; the fields are those of `mmemb.records.pairs.Query`."""

    task: str
    split: str
    concept: str
    fact: str
    gallery: str
    relevance: tuple[str, ...]
    instruction: str = ""
    text: str = ""
    image: Picture | None = None
    answers: tuple[str, ...] = ()
    clip: tuple[Picture, ...] = ()

    @property
    def media(self) -> dict[str, Picture]:
        """Pictures to draw for the row, by member."""
        return _media("q", self.image, self.clip)

    def sample(self, number: int, drawn: Mapping[Picture, bytes]) -> Sample:
        """The row as a sample of its folder."""
        data = {
            "task": self.task,
            "split": self.split,
            "concept": self.concept,
            "fact": self.fact,
            "instruction": self.instruction,
            "text": self.text,
            "relevance": dict.fromkeys(self.relevance, 1.0),
            "answers": list(self.answers),
        }

        meta = {k: data[k] for k in ("task", "split", "concept", "fact")}
        meta |= {"gallery": self.gallery}
        return _sample(f"{number:08d}", data, self.media, meta, drawn)


@final
@dataclass(frozen=True)
class CandidateRow:
    """A row of the candidate table."""

    gallery: str
    name: str
    text: str = ""
    image: Picture | None = None
    instruction: str = ""
    clip: tuple[Picture, ...] = ()

    @property
    def media(self) -> dict[str, Picture]:
        """Pictures to draw for the row, by member."""
        return _media("c", self.image, self.clip)

    def sample(self, number: int, drawn: Mapping[Picture, bytes]) -> Sample:
        """The row as a sample of its folder."""
        data = {
            "name": self.name,
            "gallery": self.gallery,
            "instruction": self.instruction,
            "text": self.text,
        }

        meta = {"gallery": self.gallery, "name": self.name}
        return _sample(f"{number:08d}", data, self.media, meta, drawn)


@final
@dataclass
class Rows:
    """Rows that one kind of concept (flags, emoji) adds to the data set."""

    plain: list[PairRow] = field(default_factory=list)
    questions: list[PairRow] = field(default_factory=list)
    queries: list[QueryRow] = field(default_factory=list)
    candidates: list[CandidateRow] = field(default_factory=list)

    def __add__(self, other: Rows) -> Rows:
        return Rows(*(getattr(self, n) + getattr(other, n) for n in vars(self)))

    def pictures(self) -> Iterator[Picture]:
        """Pictures to draw for all rows."""
        for rows in (self.plain, self.questions, self.queries, self.candidates):
            for row in rows:
                yield from row.media.values()


def numbered(
    rows: Iterable[QueryRow | CandidateRow], drawn: Mapping[Picture, bytes]
) -> Iterator[Sample]:
    """Samples whose keys are zero-padded ordinals."""
    return (row.sample(number, drawn) for number, row in enumerate(rows))


def _media(side: str, image: Picture | None, clip: tuple[Picture, ...]) -> dict[str, Picture]:
    frames = {f"{side}0.{number:03d}.webp": frame for number, frame in enumerate(clip)}
    # A side has an image or a clip, never both.
    return {f"{side}0.webp": image} if image else frames


def _sample(
    key: str,
    data: dict[str, Any],
    media: Mapping[str, Picture],
    meta: dict[str, str],
    drawn: Mapping[Picture, bytes],
) -> Sample:
    members = {name: drawn[picture] for name, picture in media.items()}
    return Sample(key, members | encode_members({"json": data}), meta)
