"""Milliseconds per query, measured live through the one inference path, writer included."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, final

import msgspec
from torch import Tensor

from mmemb.gate.adaptive_embedder import AdaptiveEmbedder
from mmemb.records.hashing import stable_hash
from mmemb.records.inputs import Side
from mmemb.records.pairs import Query
from mmemb.records.schema import Schema, parse_json

NUM_TIMED = 32


@final
class Latency(Schema):
    """One query's cost at batch size 1, or the mean over some.

    Attributes:
        key: of the query.
        decided_ms: embedding, and the gate's decision not to reason, its state included.
        depth_ms: at each depth, the direct embedding first, without asking the gate.
        tokens: written at each depth.
    """

    key: str
    decided_ms: float
    depth_ms: tuple[float, ...]
    tokens: tuple[float, ...]


@final
class _LatencyJson(Schema):
    """A `latency.json`."""

    queries: Annotated[tuple[Latency, ...], msgspec.Meta(min_length=1)]


def measure_latency(
    embedder: AdaptiveEmbedder,
    keys: Sequence[str],
    sides: Sequence[Side],
    galleries: Sequence[Tensor | None] | None = None,
    progress: Callable[[Sequence[Any]], Any] = iter,
) -> list[Latency]:
    """Embeds each side alone, at every depth and with a decision, after a warm-up of each.

    Args:
        embedder: with writers that write live.
        keys: B names of the sides.
        sides: B sides.
        galleries: (N, D) candidates of each side, where the gate's state holds their scores.
        progress: wraps the rows, to show a bar.
    """
    galleries = galleries or [None] * len(sides)
    depths = embedder.depths

    # The last side, since the prompt of the first would be known then.
    for depth in depths:
        embedder.encode(sides[-1:], depth=depth)

    measured = []
    for key, side, gallery in progress(list(zip(keys, sides, galleries, strict=True))):
        # A budget of 0: the gate is asked, and nothing is written.
        decided_ms, _ = _timed(partial(embedder.encode, [side], 0.0, gallery=gallery))
        timed = [_timed(partial(embedder.encode, [side], depth=depth)) for depth in depths]
        tokens = tuple(float(encoded.tokens_B.sum()) for _, encoded in timed)
        measured.append(Latency(key, decided_ms, tuple(ms for ms, _ in timed), tokens))
    return measured


def mean_latency(path: Path) -> tuple[Latency, int]:
    """Returns the mean over the latency.json of a `GatingPolicy test`, and its number of queries.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it holds no measurement.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: run `experiments.run test` with the gate's config, which measures "
            "milliseconds live."
        )
    where = f"{path} holds no live measurement"
    advice = "Delete it and run `experiments.run test` with the gate's config again."
    rows = parse_json(path.read_bytes(), _LatencyJson, where, advice)
    if len({len(column) for row in rows.queries for column in (row.depth_ms, row.tokens)}) > 1:
        raise ValueError(f"{where}: expected equally many depths of every query. {advice}")

    queries = rows.queries
    depth_ms = tuple(map(_mean, zip(*(row.depth_ms for row in queries), strict=True)))
    tokens = tuple(map(_mean, zip(*(row.tokens for row in queries), strict=True)))
    decided_ms = _mean([row.decided_ms for row in queries])
    return Latency("mean", decided_ms, depth_ms, tokens), len(queries)


def _mean(column: Sequence[float]) -> float:
    return sum(column) / len(column)


def _timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function()
    return 1000 * (time.perf_counter() - start), result


def fixed_sample(queries: list[Query]) -> list[Query]:
    """The 32 queries with the smallest hash of their key: the same ones in every run."""
    ranked = sorted(queries, key=lambda query: stable_hash("latency", query.key))
    return ranked[:NUM_TIMED]
