"""Frozen, typed records that travel between the rooms, and their JSON form.

Knows neither files nor models: shards turn into records in `datamodules`, records into vectors in
`mmemb.backbones`. Batches of them: `mmemb.records.batches`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, final

import msgspec
from torch import Tensor

from mmemb.records.schema import Count, Schema
from mmemb.records.text import check_unicode

DIRECT, SHORT, FULL = "direct", "short", "full"
"""Names of the depths at which a query can be embedded (METHOD 4)."""

TOKENS_PER_PICTURE = 64
"""What a picture counts where tokens are only estimated, to balance batches and to cut them."""

GREEDY = -1
"""The seed that asks a worker for its one greedy draw instead of a sample."""

PARTS = ("train", "val", "gate", "calibration", "test")
"""Data parts: who may judge whom (METHOD 3)."""


def stable_hash(*parts: object, bits: int = 63) -> int:
    """A hash that is equal in every process and run (Python's own is not).

    >>> stable_hash("country:fr") == stable_hash("country:fr")
    True
    """
    text = "\x1f".join(map(str, parts))
    check_unicode(text)
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - bits)


@dataclass(frozen=True, slots=True)
class Media:
    """One picture: an image of its own, or one frame of the side's video.

    Attributes:
        kind: `image` or `frame`; the frames of a side are one video, in order.
        digest: SHA-256 (hex) of the encoded bytes, the key of its cached features.
        pixels: uint8 (3, H, W), or None where only features were loaded.
        features: (T, F) tokens of a frozen tower from `features/`, or None.
    """

    kind: Literal["image", "frame"]
    digest: str
    pixels: Tensor | None = None
    features: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a pair: any mix of text, images and video frames, plus an instruction."""

    text: str = ""
    instruction: str = ""
    media: tuple[Media, ...] = ()

    @property
    def modalities(self) -> frozenset[str]:
        """The subset of {"text", "image", "video"} that this side holds."""
        names = {"text"} if self.text else set()
        names |= {"image" if m.kind == "image" else "video" for m in self.media}
        return frozenset(names)

    @property
    def num_tokens(self) -> int:
        """About how many tokens a model reads: what batches are balanced and cut by. Not a count
        of any tokenizer: four letters are one token, a picture is 64."""
        letters = len(self.instruction) + len(self.text)
        return 1 + letters // 4 + TOKENS_PER_PICTURE * len(self.media)

    @property
    def digest(self) -> str:
        """Content hash (16 hex digits): equal content is equal wherever it comes from."""
        parts = (self.instruction, self.text, *(f"{m.kind}:{m.digest}" for m in self.media))
        return f"{stable_hash(*parts, bits=64):016x}"


class _Draw(Schema):
    """The fields of a rationale."""

    text: str
    worker: str
    model: str
    revision: str
    prompt: str
    decoding: str
    seed: int
    num_tokens: Count
    log_probability: float | None = None
    depth: str = FULL
    count: Annotated[int, msgspec.Meta(ge=1)] = 1
    provenance: str = "one-sided"
    seeds: tuple[int, ...] = ()


@final
class Rationale(_Draw):
    """What a worker wrote about one side, with all that is needed to write it again.

    Attributes:
        text: the whole of it, tags included: `<think>...</think><answer>...</answer>`.
        depth: `full`, or `short` for a draw of its own that starts at `<answer>`.
        provenance: `one-sided` when the worker saw only this side, else `two-sided`, `unknown`.
        seed: the draw's seed, `GREEDY` for the greedy one.
        num_tokens: tokens the model generated for it.
        log_probability: sum over those tokens; None where a worker gives none.
        count: how many equal draws were merged into this one.
        seeds: of all of them, where there is more than one.
    """

    @property
    def mean_log_probability(self) -> float | None:
        """Per token: how sure the worker was of its own words; None where it gives no figure."""
        if self.log_probability is None:
            return None
        return round(self.log_probability / max(self.num_tokens, 1), 4)

    @property
    def thinking(self) -> str:
        """The text between the think tags; empty for a short rationale."""
        return _between(self.text, "<think>", "</think>")

    @property
    def answer(self) -> str:
        """The text between the answer tags, behind the thought; empty if there is none."""
        text = self.text
        if "<think>" in text.partition("<answer>")[0]:
            # A thought may spell the tags of an answer.
            _, closed, behind = text.partition("<think>")[2].partition("</think>")
            text = behind if closed else text
        return _between(text, "<answer>", "</answer>")

    @property
    def plain(self) -> str:
        """Thought and answer without tags, one space between: what an embedder reads."""
        return " ".join(part for part in (self.thinking, self.answer) if part)


def _between(text: str, opening: str, closing: str) -> str:
    """The text between the first opening tag and the next closing one.

    Each is searched once, so that many tags that are never closed cost no more than one.
    """
    _, _, behind = text.partition(opening)
    inside, closed, _ = behind.partition(closing)
    return inside.strip() if closed else ""


def drafts_at(depth: str, rationales: Sequence[Rationale]) -> tuple[Rationale, ...]:
    """Those that were written at a depth, in order."""
    return tuple(rationale for rationale in rationales if rationale.depth == depth)


@final
class ScoredRationale(Schema):
    """A rationale with its contrasts (METHOD 5) and what the selector decided.

    `scores` holds `raw`, `gain`, `positive`, `margin`, `placebo_rank`, as far as computed; an
    unscored candidate has none, is not kept and weighs 0.
    """

    rationale: Rationale
    scores: Mapping[str, float | None] = {}
    names_target: bool | None = None
    kept: bool = False
    weight: float = 0.0


@final
class ScoredJson(_Draw):
    """A candidate of `rationales/` or `selected/`: a rationale, and what a selector said of it."""

    scores: dict[str, float | None] = {}
    names_target: bool | None = None
    kept: bool = False
    weight: Annotated[float, msgspec.Meta(ge=0)] = 0.0

    @property
    def scored(self) -> ScoredRationale:
        """As a record."""
        values, num = msgspec.structs.astuple(self), len(Rationale.__struct_fields__)
        return ScoredRationale(Rationale(*values[:num]), *values[num:])


@dataclass(frozen=True, slots=True)
class Pair:
    """A training pair.

    Attributes:
        key: sample id, unique in the data set.
        concept: what splits and bootstrap clusters are made of (`country:fr`).
        fact: what a model that trains on this pair learns (`country:fr/capital`).
        group: candidate space; a homogeneous group of a batch comes from one.
        target_name: name of the target in `gallery`; equal names are the same target.
        positives: names of every right target, `target_name` among them.
        answers: texts that name the target; used for scoring reports only, never as input.
        gallery: the candidates among which a judge ranks the target.
    """

    key: str
    task: str
    part: str
    concept: str
    fact: str
    group: str
    gallery: str
    query: Side
    target: Side
    target_name: str
    positives: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Query:
    """An evaluation query; `relevance` maps candidate names to grades above 0.

    `candidates` is the local candidate list (row numbers in the candidate table), or None for
    the whole gallery of the task.
    """

    key: str
    task: str
    part: str
    concept: str
    fact: str
    side: Side
    relevance: Mapping[str, float]
    answers: tuple[str, ...] = ()
    candidates: tuple[int, ...] | None = None
    gallery: str = ""
    seen_answer: bool = False


@dataclass(frozen=True, slots=True)
class Candidate:
    """One row of the candidate table; its name is its identity within its gallery."""

    key: str
    name: str
    gallery: str
    side: Side


@final
class EvaluationTask(Schema):
    """One row of the benchmark.

    Attributes:
        meta_task: MMEB-V2's family: `I-CLS`, `I-QA`, `I-RET`, `V-RET`, `VisDoc`, ...
        metric: the headline metric, `hit@1` or `ndcg_linear@5`.
        origin: `R`, real as shipped, or `D`, derived by us.
        think: whether a rationale was expected, beforehand, to carry information.
        seen_answer: the task's answers may have been trained on (names, mixed rows); without it
            scoring a fitted fact is an error (METHOD 3).
    """

    name: str
    meta_task: str
    gallery: str
    metric: str = "hit@1"
    origin: str = "R"
    think: bool = False
    seen_answer: bool = False


def to_json(record: Schema) -> dict[str, Any]:
    """A record (Rationale, EvaluationTask, ...) as JSON data."""
    return msgspec.to_builtins(record)


def scored_to_json(scored: ScoredRationale) -> dict[str, Any]:
    """One candidate of `rationales/` or `selected/` as flat JSON data; see `ScoredJson`."""
    data = to_json(scored.rationale)
    if scored.scores:
        data |= {"scores": dict(scored.scores), "names_target": scored.names_target}
        data |= {"kept": scored.kept, "weight": scored.weight}
    return data
