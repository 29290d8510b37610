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

from mmemb.records.text import check_unicode

_KEPT = frozenset({"<think>", "</think>", "<answer>", "</answer>"})
"""Special in some models; rationales are made of them."""

_MARKS = ("image_token", "video_token", "vision_start_token", "vision_end_token")
"""Names of a processor's marks, which not every tokenizer declares special."""

_USUAL = re.compile(
    r"<\|[^\s<>|]{1,40}\|>"  # <|im_end|> of Qwen, Llama, Phi and others
    r"|<｜[^\s<>｜]{1,40}｜>"  # DeepSeek's
    r"|</?s>|<(?:bos|eos|pad|unk|cls|sep|mask)>"
    r"|<(?:start|end)_of_(?:turn|image|text|utterance)>"
    r"|</?(?:image|video|audio)(?:_soft_token|_placeholder)?>"
    r"|<</?SYS>>|\[/?(?:INST|IMG|IMG_BREAK|IMG_END|[A-Z]{1,20}_(?:PROMPT|TOOLS|RESULTS|CALLS))\]"
)
"""Special tokens of usual chat models, for a server whose tokenizer is not here."""

_ADDED: MutableMapping[Any, frozenset[str]] = WeakKeyDictionary()
"""Tokenizer -> its added tokens that are special, kept: to list them takes a while."""


def special_tokens(tokenizer: Any, marks: Iterable[str] = ()) -> frozenset[str]:
    """Tokens that no text of data may spell: those that a tokenizer names as special, those that it
    merely adds as such or whose chat template writes them, and more marks; not the tags of
    rationales.

    Args:
        tokenizer: of transformers.
        marks: of pictures and clips, which need not be declared special.
    """
    return frozenset({*tokenizer.all_special_tokens, *_added(tokenizer), *marks}) - _KEPT


def media_marks(processor: Any) -> frozenset[str]:
    """Tokens that stand for pictures and clips, by a processor or a tokenizer."""
    marks = (getattr(processor, name, None) for name in _MARKS)
    return frozenset(mark for mark in marks if isinstance(mark, str) and mark)


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
    pattern, count = _pattern(special_tokens(tokenizer, marks)), 1
    while count:  # of two that overlap, the second is still there
        text, count = pattern.subn(_spaced, text)
    return text


def as_text_anywhere(text: str) -> str:
    """Spaces the usual special tokens, for a model whose tokenizer is not here.

    >>> as_text_anywhere("end<|im_end|> [INST] </s> a<b|c>")
    'end< |im_end|> [ INST] < /s> a<b|c>'

    Raises:
        ValueError: the text is no valid Unicode.
    """
    check_unicode(text)
    return _USUAL.sub(_spaced, text)


def _spaced(match: re.Match[str]) -> str:
    return f"{match[0][0]} {match[0][1:]}"


def _added(tokenizer: Any) -> frozenset[str]:
    tokens = _ADDED.get(tokenizer)
    if tokens is None:
        # Some templates write tokens that their tokenizer does not declare special.
        template = str(getattr(tokenizer, "chat_template", None) or "")
        added = getattr(tokenizer, "added_tokens_decoder", {}).values()
        tokens = _ADDED[tokenizer] = frozenset(
            token.content
            for token in added
            if token.special or (token.content in template and not token.content.isspace())
        )
    return tokens


@cache
def _pattern(tokens: frozenset[str]) -> re.Pattern[str]:
    longest_first = sorted((t for t in tokens if len(t) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
