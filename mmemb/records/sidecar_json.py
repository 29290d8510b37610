"""Types of the JSON of sidecars: depth values, decisions and mined negatives.

That of rationales is in `mmemb.records.rationales`.
"""

from __future__ import annotations

from typing import Annotated, final

import msgspec

from mmemb.records.schema import Count, Schema

_PerDraw = tuple[tuple[float, ...], ...]
"""A number for each depth and draw."""


@final
class DepthValueJson(Schema):
    """The JSON of a sample of `depth_values/`, as `mmemb.retrieval.depth_values` writes it.

    Attributes:
        eligible: whether it has rationales.
        depths: names of A depths, `direct` first; the other lists have an entry for each.
        depth_value: log-probability of the right candidate, of each draw.
        cost: generated tokens of each draw.
        confidence: mean log-probability of each draw, where its writer gives one.
        metrics: of the greedy draw; an older folder may lack what follows.
        averaged: of the mean over all draws.
        ranks: of the best right candidate, from 1.
        top: names of the candidates at rank 1.
        scores: shape of the direct scores: best, lead, spread; none where it is not known.
        swap: cosines with a placebo and with none; nothing where it was not measured.
    """

    task: str
    split: str
    concept: str
    eligible: bool
    depths: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    depth_value: _PerDraw
    cost: _PerDraw
    confidence: tuple[tuple[float | None, ...], ...] = ()
    metrics: tuple[dict[str, float], ...] = ()
    averaged: tuple[dict[str, float], ...] = ()
    ranks: tuple[Annotated[float, msgspec.Meta(ge=1)], ...] = ()
    top: tuple[str, ...] = ()
    scores: Annotated[tuple[float, ...], msgspec.Meta(max_length=3)] = ()
    swap: Annotated[tuple[float, ...], msgspec.Meta(max_length=2)] = ()


@final
class DecisionJson(Schema):
    """The JSON of a sample of `decisions/`, as `mmemb.gate.decision_rows` writes it."""

    depth: Count
    logits: tuple[float, ...]
    probability: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    cost: float | None = None


@final
class NegativeJson(Schema):
    """A wrong candidate of a pair: one item in the JSON of a sample of `negatives/`.

    Attributes:
        row: its place in the candidate table.
        name: its name there.
        score: cosine with the query.
    """

    row: Count
    name: str
    score: float
