"""Milliseconds per query, measured live through the one inference path, worker included."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

from mmemb.adaptive import AdaptiveEmbedder
from mmemb.records import Side


@final
@dataclass(frozen=True, slots=True)
class Latency:
    """One query's cost at batch size 1.

    Attributes:
        direct_ms: embedding alone.
        decided_ms: embedding, and the gate's decision not to reason, its state included.
        reasoned_ms: reasoning without asking the gate.
    """

    key: str
    direct_ms: float
    decided_ms: float
    reasoned_ms: float
    tokens: int


def measure_latency(
    embedder: AdaptiveEmbedder,
    keys: Sequence[str],
    sides: Sequence[Side],
    galleries: Sequence[Tensor | None] | None = None,
    progress: Callable[[Sequence[Any]], Any] = iter,
) -> list[Latency]:
    """Embeds each side alone, directly, with a decision and with reasoning, after a warm-up.

    Args:
        embedder: with the worker that writes live.
        keys: B names of the sides.
        sides: B sides.
        galleries: (N, D) candidates of each side, where the gate's state holds their scores.
        progress: wraps the rows, to show a bar.
    """
    galleries = galleries or [None] * len(sides)
    embedder.encode(sides[:1], depth=1)
    measured = []
    for key, side, shown in progress(list(zip(keys, sides, galleries, strict=True))):
        direct_ms, _ = _timed(lambda side=side: embedder.encode([side], depth=0))
        decided_ms, _ = _timed(
            lambda side=side, shown=shown: embedder.encode([side], budget=0.0, gallery=shown)
        )
        reasoned_ms, encoded = _timed(lambda side=side: embedder.encode([side], depth=1))
        measured.append(
            Latency(key, direct_ms, decided_ms, reasoned_ms, int(encoded.tokens_B.sum()))
        )
    return measured


def _timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function()
    return 1000 * (time.perf_counter() - start), result
