"""Turns the raw draws of one side into its pool: equal texts merged, broken ones dropped.

See docs/method.md section 4.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from msgspec.structs import replace

from mmemb.records.rationales import GREEDY, SHORT, UNKNOWN, Rationale


def merge_drafts(
    rationales: Sequence[Rationale], *, max_tokens: int = 96
) -> tuple[list[Rationale], Counter[str]]:
    """Merges equal draws and drops those that no embedder should read.

    Draws are equal if writer, depth and text are. Of equal draws the greedy one stays, else the
    first, since its seed and log-probability are those of a real draw.

    Args:
        rationales: all draws of one side.
        max_tokens: longest draw that is kept.

    Returns:
        Distinct rationales in the order of their first draw, `count` summed over equal draws; and
        the number of draws dropped, by reason (`malformed`, `over_long`).
    """
    dropped: Counter[str] = Counter()
    merged: dict[tuple[str, str, str], Rationale] = {}
    for rationale in rationales:
        if reason := _fault(rationale, max_tokens):
            dropped[reason] += rationale.count
            continue

        key = (rationale.writer, rationale.depth, rationale.text)
        merged[key] = _merge(merged[key], rationale) if key in merged else rationale
    return list(merged.values()), dropped


def _fault(rationale: Rationale, max_tokens: int) -> str:
    # A draw that was cut off has no closed answer. A thought may be missing at depth `short`, and
    # where others wrote a text in one piece.
    may_lack_thought = rationale.depth == SHORT or rationale.provenance == UNKNOWN
    if not rationale.answer or not (rationale.thinking or may_lack_thought):
        return "malformed"
    return "over_long" if rationale.num_tokens > max_tokens else ""


def _merge(first: Rationale, second: Rationale) -> Rationale:
    stays = second if second.seed == GREEDY and first.seed != GREEDY else first
    seeds = (first.seeds or (first.seed,)) + (second.seeds or (second.seed,))
    return replace(stays, count=first.count + second.count, seeds=seeds)
