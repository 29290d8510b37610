"""Milliseconds per query, measured live through the one inference path, worker included."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

from mmemb.adaptive import AdaptiveEmbedder
from mmemb.records import Side


@final
@dataclass(frozen=True, slots=True)
class Latency:
    """One query's cost at batch size 1: both paths, and what the gate itself takes of them."""

    key: str
    direct_ms: float
    reasoned_ms: float
    tokens: int


def measure_latency(
    embedder: AdaptiveEmbedder,
    keys: Sequence[str],
    sides: Sequence[Side],
    progress: Callable[[Sequence[Any]], Any] = iter,
) -> list[Latency]:
    """Embeds each side alone, directly and with reasoning, after one warm-up of both paths.

    The direct figure includes the gate's decision: that is what a gated query costs that does
    not reason.
    """
    embedder.encode(sides[:1], depth=1)
    measured = []
    for key, side in progress(list(zip(keys, sides, strict=True))):
        direct_ms, _ = _timed(lambda side=side: embedder.encode([side], budget=0.0))
        reasoned_ms, encoded = _timed(lambda side=side: embedder.encode([side], depth=1))
        measured.append(Latency(key, direct_ms, reasoned_ms, int(encoded.tokens_B.sum())))
    return measured


def _timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function()
    return 1000 * (time.perf_counter() - start), result
