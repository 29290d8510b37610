"""Turns the raw draws of one side into its pool: equal texts merged, broken ones dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from mmemb.records import GREEDY, SHORT, Rationale


@dataclass(frozen=True, slots=True)
class Folded:
    """The pool of one side.

    Attributes:
        kept: distinct rationales in the order of their first draw; `count` sums the draws.
        dropped: number of draws dropped, by reason (`malformed`, `over_long`).
    """

    kept: tuple[Rationale, ...]
    dropped: Counter[str] = field(default_factory=Counter)


def fold_candidates(rationales: Sequence[Rationale], *, max_characters: int = 600) -> Folded:
    """Merges equal draws and drops those that no embedder should read (METHOD 4).

    Draws are equal if worker, depth and text are. Of equal draws the greedy one stays, else the
    first, since its seed and log-probability are those of a real draw.

    Args:
        rationales: all draws of one side.
        max_characters: longest text that is kept, tags included.
    """
    dropped: Counter[str] = Counter()
    merged: dict[tuple[str, str, str], Rationale] = {}
    for rationale in rationales:
        if reason := _fault(rationale, max_characters):
            dropped[reason] += rationale.count
            continue
        key = (rationale.worker, rationale.depth, rationale.text)
        merged[key] = _merge(merged[key], rationale) if key in merged else rationale
    return Folded(tuple(merged.values()), dropped)


def _fault(rationale: Rationale, max_characters: int) -> str:
    if not rationale.answer or not (rationale.thinking or rationale.depth == SHORT):
        return "malformed"
    return "over_long" if len(rationale.text) > max_characters else ""


def _merge(first: Rationale, second: Rationale) -> Rationale:
    stays = second if second.seed == GREEDY and first.seed != GREEDY else first
    return replace(stays, count=first.count + second.count)
