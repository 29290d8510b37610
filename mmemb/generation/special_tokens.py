"""Texts of data in prompts: what looks like a special token stays text.

A rationale or a document that spells `<|im_end|>` would end its turn, and one that spells
`<|image_pad|>` would be read as a picture that is not there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, MutableMapping
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

from mmemb.text import check_unicode

_KEPT = frozenset({"<think>", "</think>", "<answer>", "</answer>"})
"""Special in some models; rationales are made of them."""

_ADDED: MutableMapping[Any, frozenset[str]] = WeakKeyDictionary()
"""Tokenizer -> its added tokens that are special: a list of some hundred is made at every look."""


def special_tokens(tokenizer: Any, marks: Iterable[str] = ()) -> frozenset[str]:
    """What no text of data may spell: tokens that a tokenizer names as special, those that it
    merely adds as such, and more marks; not the tags of rationales.

    Args:
        tokenizer: of transformers.
        marks: of pictures and clips, which need not be declared special.
    """
    return frozenset({*tokenizer.all_special_tokens, *_added(tokenizer), *marks}) - _KEPT


def as_text(text: str, tokenizer: Any, marks: Iterable[str] = ()) -> str:
    """The text with a space in every special token of a tokenizer, behind its first letter.

    Args:
        text: of data or of another model.
        tokenizer: of transformers.
        marks: see `special_tokens`.

    Raises:
        ValueError: the text is no valid Unicode.
    """
    check_unicode(text)
    pattern = _pattern(special_tokens(tokenizer, marks))
    return pattern.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)


def _added(tokenizer: Any) -> frozenset[str]:
    found = _ADDED.get(tokenizer)
    if found is None:
        added = getattr(tokenizer, "added_tokens_decoder", {}).values()
        found = _ADDED[tokenizer] = frozenset(token.content for token in added if token.special)
    return found


@cache
def _pattern(tokens: frozenset[str]) -> re.Pattern[str]:
    longest_first = sorted((t for t in tokens if len(t) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
