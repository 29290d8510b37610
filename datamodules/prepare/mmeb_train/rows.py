"""Rows of the published training data, source by source, before a picture is opened."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, final

from datamodules.prepare.cells import shown
from datamodules.prepare.mmeb.annotations import Row, RowError, each_row
from datamodules.prepare.mmeb_train.sources import Source, instructions
from mmemb.records.text import has_text

TOKENS = ("<|image_1|>", "<|image_2|>", "<image>", "<video>")
"""Placeholders of a picture in stored texts; each model has its own token, so none is kept."""

_PAGE = "Understand the content of the provided document image."
_FIND_PAGE = "Find a document image that matches the given query:"
_FIND_VIDEO = "Find a video that contains the following visual content:"
_VIDEO = "Understand the content of the provided video:"
_ANSWER = "Answer a question based on the content of a video."
_MMEB = ("qry", "qry_image_path", "pos_text", "pos_image_path")


@final
@dataclass(frozen=True, slots=True)
class TrainSide:
    """A side of a pair.

    Attributes:
        picture: path of an image below the repository, or "".
        content: the picture's bytes, where the table holds them.
        clip: name of a folder of frames, or "".
    """

    text: str = ""
    instruction: str = ""
    picture: str = ""
    content: bytes = b""
    clip: str = ""

    @property
    def shows(self) -> str:
        """Identity of what it shows, "" of nothing."""
        if self.content:
            return hashlib.sha256(self.content).hexdigest()[:32]
        return self.picture or self.clip

    @property
    def name(self) -> str:
        """Its identity among targets."""
        return ":".join(part for part in (self.shows, self.text) if part)


@final
@dataclass(frozen=True, slots=True)
class TrainRow:
    """A pair.

    Attributes:
        number: its place among the source's rows, empty ones counted.
        fault: of its annotation; "" if it has none. A row with a fault has empty sides.
    """

    number: int
    query: TrainSide = TrainSide()
    target: TrainSide = TrainSide()
    fault: str = ""

    @property
    def is_empty(self) -> bool:
        """Published rows may have nothing on one side."""
        return not all(side.shows or has_text(side.text) for side in (self.query, self.target))

    @property
    def topic(self) -> str:
        """Key of a cut, which must not lie on both sides of it: a picture, or the query's text."""
        return self.query.shows or self.target.shows or self.query.text


def read_source(source: Source, folder: Path) -> Iterator[TrainRow]:
    """The rows of a source up to its cap, in stored order; one that cannot be read has a fault.

    Args:
        source: of the mixture.
        folder: local copy of its repository.

    Raises:
        FileNotFoundError: the annotations are not there.
        ValueError: a file is broken, or lacks a column.
    """
    files, columns, pair = _LAYOUTS[source.layout](source, folder)
    if not files:
        raise FileNotFoundError(
            f"{source.name}: {folder} holds no annotations of it (docs/mmeb_train.md says which "
            "files are expected where). Was the download complete?"
        )

    for number, row in enumerate(islice(each_row(files, columns), source.cap)):
        # The number counts all rows, also broken ones, as it is the key of the pair.
        try:
            match row:
                case RowError():
                    raise row
                case Row():
                    query, target = pair(row)
        except RowError as error:
            yield TrainRow(number, fault=str(error))
        else:
            yield TrainRow(number, query, target)


Layout = tuple[list[Path], tuple[str, ...], Callable[[Row], tuple[TrainSide, TrainSide]]]


def _mmeb(source: Source, folder: Path) -> Layout:
    # `original` files hold the published pairs; other files of the folder are variants.
    files = sorted((folder / source.name).glob("original*.parquet"))

    def pair(row: Row) -> tuple[TrainSide, TrainSide]:
        query = _stored(row.text("qry"), row.text("qry_image_path"))
        return query, _stored(row.text("pos_text"), row.text("pos_image_path"))

    return files, _MMEB, pair


def _colpali(source: Source, folder: Path) -> Layout:
    files = sorted((folder / "data").glob("train*.parquet"))

    def pair(row: Row) -> tuple[TrainSide, TrainSide]:
        page = TrainSide(row.text("query").strip(), content=_bytes(row))
        return page, TrainSide(row.text("answer").strip())

    return files, ("query", "image", "answer"), pair


def _visrag(source: Source, folder: Path) -> Layout:
    files = sorted((folder / "data").glob("train*.parquet"))

    def pair(row: Row) -> tuple[TrainSide, TrainSide]:
        query = TrainSide(row.text("query").strip(), _FIND_PAGE)
        return query, TrainSide("", _PAGE, content=_bytes(row))

    return files, ("query", "image"), pair


def _hound(source: Source, folder: Path) -> Layout:
    pattern = "*qa*.jsonl" if source.layout == "video_qa" else "*caption*.jsonl"
    files = sorted((folder / "video_instruction").rglob(pattern))

    def pair(row: Row) -> tuple[TrainSide, TrainSide]:
        turns = row.of_type("conversations", row.values["conversations"], list, "a list of turns")
        if len(turns) < 2:
            raise row.error("two turns in 'conversations'", shown(turns))

        question, answer = (_plain(_turn_text(row, turn)) for turn in turns[:2])
        clip = row.name("video")
        # The caption looks for its video, so the answer of the turn becomes the query.
        if source.layout == "video_retrieval":
            return TrainSide(answer, _FIND_VIDEO), TrainSide("", _VIDEO, clip=clip)
        if source.layout == "video_qa":
            return TrainSide(question, _ANSWER, clip=clip), TrainSide(answer)
        return TrainSide(question, clip=clip), TrainSide(answer)

    return files, ("video", "conversations"), pair


def _turn_text(row: Row, turn: Any) -> str:
    turn = row.of_type("conversations", turn, dict, "an object for each turn")
    return replace(row, values={"value": turn.get("value")}).text("value")


def _stored(text: str, picture: str) -> TrainSide:
    """A side of MMEB-train, whose instruction stands in front of its text."""
    text = _plain(text)
    # The longest instruction first: a shorter one may be the beginning of it.
    for instruction in instructions():
        if text.startswith(instruction):
            return TrainSide(text[len(instruction) :].strip(), instruction, picture)
    return TrainSide(text, "", picture)


def _plain(text: str) -> str:
    for token in TOKENS:
        text = text.replace(token, "")
    return text.strip()


def _bytes(row: Row) -> bytes:
    value: Any = row.values["image"]
    data = value.get("bytes") if isinstance(value, Mapping) else None
    if not isinstance(data, bytes):
        raise row.error("a picture's bytes in 'image'", type(value).__name__)
    return data


_LAYOUTS: Mapping[str, Callable[[Source, Path], Layout]] = {
    "mmeb": _mmeb,
    "colpali": _colpali,
    "visrag": _visrag,
    "caption_retrieval": _hound,
    "video_retrieval": _hound,
    "video_qa": _hound,
}
