"""Test of a rationale for its target's name: a figure for reports, no reason to drop it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from mmemb.records.text import limit_marks


def names_target(text: str, answers: Sequence[str]) -> bool:
    """Tells whether the text holds an answer as whole words, whatever case and accents.

    It is reported and drops nothing: a good one-sided rationale names the answer.

    >>> names_target("It is the Côte d’Ivoire.", ["Cote d'Ivoire"])
    True
    >>> names_target("Nigeria", ["Niger"])
    False
    """
    words = _words(text)

    # An answer without letters and digits, such as an emoji, is compared as it stands.
    return any(
        f" {_words(answer)} " in f" {words} " if _words(answer) else answer.strip() in text
        for answer in answers
        if answer.strip()
    )


def _words(text: str) -> str:
    # Compatibility forms first: then an accent is a character of its own and can be left out.
    decomposed = unicodedata.normalize("NFKD", limit_marks(text.casefold()))
    bare = "".join(c for c in decomposed if not unicodedata.combining(c))
    return " ".join(re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", bare)))
