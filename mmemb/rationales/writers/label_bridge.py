"""Lets a writer that reads text alone write about pictures: an embedder says what they show.

Shapes: N labels, M pictures, D embedding width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, final

import msgspec
import torch
from torch import Tensor

from mmemb.rationales.writers.base import RationaleWriter
from mmemb.rationales.writers.loading import load_writer
from mmemb.records.hashing import stable_hash
from mmemb.records.inputs import Media, Side
from mmemb.records.rationales import Rationale
from mmemb.records.schema import Schema, parse_json
from mmemb.records.text import check_template
from mmemb.storage.allowed_classes import allowed_classes
from mmemb.storage.run_marks import run_mark
from mmemb.storage.spec import arguments_of

if TYPE_CHECKING:
    from mmemb.backbones import Backbone
    from mmemb.llm.lora import LoraSettings
    from mmemb.rationales.supervised import ReplyTuner

TEMPLATE = "{text} The picture shows {labels}."


@final
class LabelBridgeWriter(RationaleWriter):
    """Tells the writer behind it the nearest label of every picture, and never the truth.

    Labels are what training pairs call pictures by. The embedder that compares them (the trunk)
    has learned names and no question, so a label is right as often as its own retrieval is. The
    frames of a side are one picture. A side without text is put as its instruction.

    Args:
        writer: reads text; its name, prompt concepts and trained facts are those of this writer.
        embedder: folder of a backbone (`runs/.../trunk/backbone`).
        labels: `labels.json` of the data: a list of objects with `text` and `instruction`, as
            training queries ask for pictures.
        template: the question to the writer, with the fields `{text}` and `{labels}`.
        device: device of the embedder.
    """

    file_arguments: ClassVar[tuple[str, ...]] = ("labels",)
    model_arguments: ClassVar[tuple[str, ...]] = ("embedder",)

    reads = frozenset({"text", "image", "video"})

    def __init__(
        self,
        writer: RationaleWriter | dict[str, Any],
        embedder: str,
        labels: str,
        template: str = TEMPLATE,
        device: str = "cpu",
    ) -> None:
        self.writer = writer if isinstance(writer, RationaleWriter) else load_writer(writer)
        self.name, self.concepts = self.writer.name, self.writer.concepts
        self.embedder, self.labels_path = str(embedder), str(labels)
        self._allowed = allowed_classes()  # the embedder is loaded when it is first asked
        self.template, self.device = template, device

        self.labels, self._revision = read_labels(Path(labels))
        self._said: dict[tuple[str, ...], str] = {}

        check_template(template, ("text", "labels"), "template")
        if "{labels}" not in template:
            raise ValueError(f"template {template!r}: expected the fields {{text}} and {{labels}}.")

    def config(self) -> dict[str, Any]:
        return arguments_of(self, writer=self.writer.spec(), labels=self.labels_path)

    def identity(self) -> str:
        """Covers the writer, the embedder's run and the content of the labels."""
        return self._identity(self.writer.identity())

    def draw_identity(self) -> str:
        return self._identity(self.writer.draw_identity())

    def prompt_state_identity(self) -> str:
        return self._identity(self.writer.prompt_state_identity())

    def _identity(self, of_writer: str) -> str:
        # A run counts by its fingerprint, wherever it lies; any other folder or id by its name.
        run = run_mark(Path(self.embedder).parent) or self.embedder
        return f"{stable_hash(of_writer, run, self._revision, self.template, bits=64):016x}"

    @property
    def trained_facts(self) -> frozenset[str]:
        """Facts of the writer behind it; the embedder was fitted on names alone."""
        return self.writer.trained_facts

    def write(self, sides: Sequence[Side], seeds_BK: Tensor) -> list[list[Rationale]]:
        return self.writer.write(self.told(sides), seeds_BK)

    def prompt_states(self, sides: Sequence[Side]) -> Tensor:
        return self.writer.prompt_states(self.told(sides))

    def tuner(self, lora: LoraSettings, seed: int) -> ReplyTuner:
        raise ValueError(
            "Fitting would ask the bridge for labels at every step. Name in `tuned` a writer that "
            "reads text, and let it learn from text queries."
        )

    @torch.inference_mode()
    def told(self, sides: Sequence[Side]) -> list[Side]:
        """Puts the sides as text; those without pictures stay as they are."""
        # Equal pictures are encoded once in the life of this writer.
        unseen = {_key(pictures): pictures for side in sides for pictures in _shown(side)}
        unseen = {key: pictures for key, pictures in unseen.items() if key not in self._said}

        if unseen:
            picture_MD = self._backbone.encode(
                [Side(media=pictures) for pictures in unseen.values()]
            )
            nearest_M = (picture_MD @ self._label_ND.T).argmax(1).tolist()
            self._said |= zip(unseen, (self.labels[n].text for n in nearest_M), strict=True)

        return [self._as_text(side) if side.media else side for side in sides]

    def _as_text(self, side: Side) -> Side:
        labels = " and ".join(self._said[_key(pictures)] for pictures in _shown(side))
        # A side with neither text nor instruction leaves a blank at the beginning.
        text = self.template.format(text=side.text or side.instruction, labels=labels)
        return replace(side, text=text.strip(), media=())

    @cached_property
    def _backbone(self) -> Backbone:
        from mmemb.backbones import load_backbone

        return load_backbone(self.embedder, self._allowed).eval().to(self.device)

    @cached_property
    def _label_ND(self) -> Tensor:
        chunks = [self.labels[n : n + 256] for n in range(0, len(self.labels), 256)]
        return torch.cat([self._backbone.encode(chunk) for chunk in chunks])


def _shown(side: Side) -> Iterator[tuple[Media, ...]]:
    """Every picture of a side by itself, and its frames together."""
    yield from ((media,) for media in side.media if media.kind == "image")
    if frames := tuple(media for media in side.media if media.kind == "frame"):
        yield frames


def _key(pictures: Sequence[Media]) -> tuple[str, ...]:
    return tuple(media.digest for media in pictures)


@final
class LabelJson(Schema):
    """A row of a file of labels."""

    text: Annotated[str, msgspec.Meta(min_length=1)]
    instruction: str


_Labels = Annotated[tuple[LabelJson, ...], msgspec.Meta(min_length=1)]


def read_labels(path: Path) -> tuple[list[Side], str]:
    """Reads the labels of a file, and returns them with a hash of it (12 hex digits).

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no list of labels.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"There is no file of labels {path}. `python -m datamodules.prepare pocket --profile "
            "full` writes it as labels.json into its output folder."
        ) from None

    rows = parse_json(
        content,
        _Labels,
        f"The labels {path} cannot be used",
        "Expected a JSON list of objects with `text` and `instruction`.",
    )

    labels = [Side(text=row.text, instruction=row.instruction) for row in rows]
    return labels, hashlib.sha256(content).hexdigest()[:12]
