"""Tells what share of a table's texts is longer than a CLIP reads, which cuts them in silence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from datamodules.prepare.cells import shown
from datamodules.prepare.folder.table import OwnRow, OwnSide
from mmemb.records.counted_nouns import counted

if TYPE_CHECKING:
    from mmemb.backbones.clip_tokenizer import ClipTokenizer

_SAMPLE = 2000
"""Most rows that are counted, evenly spread: more could take minutes."""

_CONTEXT = 77
"""Tokens that a CLIP reads of a text, its start and its end among them."""


def long_texts(rows: Sequence[OwnRow]) -> Iterator[str]:
    """Yields a sentence for queries and one for targets, if some are longer than a CLIP reads."""
    sample = rows[:: -(-len(rows) // _SAMPLE) or 1]
    sides = {
        "query": [(row.number, row.query) for row in sample],
        "target": [(row.number, side) for row in sample for side in row.positives],
    }
    for what, numbered in sides.items():
        texts = [(number, side) for number, side in numbered if side.text]
        # A token is at least one byte, so that most texts need not be tokenized.
        long = [
            (number, side) for number, side in texts if len(_text(side).encode()) > _CONTEXT - 2
        ]
        if not long:
            continue

        tokenizer = _tokenizer()
        counts = [(tokenizer.num_tokens(_text(side)), number, side) for number, side in long]
        cut = [each for each in counts if each[0] > _CONTEXT]
        if not cut:
            continue

        most, number, side = max(cut, key=lambda each: (each[0], -each[1]))
        percent = f"{100 * len(cut) / len(texts):.0f} %"
        share = f"{len(cut)} of {counted(len(texts), f'{what} text')} ({percent})"
        advice = " --passages splits such targets." if what == "target" else ""
        yield (
            f"longer than {_CONTEXT} tokens, of which a CLIP leaves out the end: {share}. The "
            f"longest is in row {number}, with {most:,}: {shown(side.text)}.{advice}"
        )


def _text(side: OwnSide) -> str:
    return f"{side.instruction} {side.text}".strip()


def _tokenizer() -> ClipTokenizer:
    # Seconds to import, and few tables need it.
    from open_clip.tokenizer import SimpleTokenizer

    from mmemb.backbones.clip_tokenizer import ClipTokenizer

    return ClipTokenizer(SimpleTokenizer(context_length=_CONTEXT))
