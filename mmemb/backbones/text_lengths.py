"""How much of its texts a backbone reads: which ones are cut, told from a sample."""

from __future__ import annotations

from collections.abc import Sequence

from mmemb.backbones.base import Backbone
from mmemb.records.counted_nouns import counted
from mmemb.records.inputs import Side
from mmemb.records.text import printable

_SAMPLE = 256
"""Most texts that are counted: a share within six percent, in milliseconds."""


def cut_texts(backbone: Backbone, sides: Sequence[Side], what: str) -> str:
    """Returns a sentence on texts that are longer than the backbone reads; "" if none is.

    Args:
        backbone: that reads them.
        sides: a sample; its first texts count.
        what: the sides are, in the plural.
    """
    texts = [side for side in sides if side.text][:_SAMPLE]
    lengths = [(backbone.text_length(side), side) for side in texts]
    cut = [(length, side) for length, side in lengths if length and length.num_cut]
    if not cut:
        return ""

    longest, side = max(cut, key=lambda each: each[0].num_tokens)
    percent = f"{100 * len(cut) / len(texts):.0f} %"
    share = f"{len(cut)} of {counted(len(texts), 'text')} of {what} ({percent})"
    return (
        f"longer than the {longest.most} tokens that {type(backbone).__name__} reads, so that "
        f"their end is lost: {share}; the longest has {longest.num_tokens}: "
        f"{printable(side.text[:60])!r}. Shorten them, split long targets by `prepare folder "
        "--passages`, or take a model that reads more."
    )
