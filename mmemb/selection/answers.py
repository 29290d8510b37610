"""Whether a rationale names its target: a figure for reports, never a reason to drop it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from mmemb.records.text import limit_marks


def names_target(text: str, answers: Sequence[str]) -> bool:
    """Whether the text holds one of the answers as whole words, whatever case and accents.

    Reported, never a reason to drop a one-sided rationale: a good one names the answer.

    >>> names_target("It is the Côte d’Ivoire.", ["Cote d'Ivoire"])
    True
    >>> names_target("Nigeria", ["Niger"])
    False
    """
    words = _words(text)
    return any(
        f" {_words(answer)} " in f" {words} " if _words(answer) else answer.strip() in text
        for answer in answers
        if answer.strip()
    )


def _words(text: str) -> str:
    decomposed = unicodedata.normalize("NFKD", limit_marks(text.casefold()))
    bare = "".join(c for c in decomposed if not unicodedata.combining(c))
    return " ".join(re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", bare)))
