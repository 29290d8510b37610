"""Texts of data in prompts: what looks like a special token stays text.

A rationale or a document that spells `<|im_end|>` would end its turn, and one that spells
`<|image_pad|>` would be read as a picture that is not there.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

_KEPT = frozenset({"<think>", "</think>", "<answer>", "</answer>"})
"""Special in some models; rationales are made of them."""


def as_text(text: str, tokenizer: Any) -> str:
    """The text with a space in every special token of a tokenizer, behind its first letter.

    Args:
        text: of data or of another model.
        tokenizer: of transformers.
    """
    pattern = _pattern(frozenset(tokenizer.all_special_tokens) - _KEPT)
    return pattern.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)


@cache
def _pattern(tokens: frozenset[str]) -> re.Pattern[str]:
    longest_first = sorted((t for t in tokens if len(t) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
