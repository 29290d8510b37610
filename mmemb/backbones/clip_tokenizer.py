"""Tokenizers for texts that may come from anywhere, without special tokens in them.

open_clip's tokenizer takes `<end_of_text>` in a text for the end, where CLIP reads out, so that all
behind it is hidden; and it reads the whole of a text, of which 77 tokens stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

# Bytes that UTF-8 never uses. CLIP reads out at the largest number: that is the end.
_START, _END, _PAD = 254, 255, 0

_MARGIN = 16
"""Tokens at the end of a cut word that the cut may have changed."""

_CACHED_WORD = 64
_CACHED_WORDS = 2**16


@final
class ClipTokenizer:
    """Gives ordinary texts the tokens that open_clip gives them.

    Args:
        tokenizer: open_clip's `SimpleTokenizer`, which is changed; kept as `simple`.
    """

    def __init__(self, tokenizer: Any) -> None:
        import regex

        self.simple = tokenizer
        self.context_length: int = tokenizer.context_length

        # Its pattern begins with the special tokens, and its cache holds them as whole words. The
        # text is cleaned before, and cleaning makes the token of `&lt;end_of_text&gt;`.
        special = [tokenizer.decoder[number] for number in tokenizer.all_special_ids]
        ordinary = tokenizer.pat.pattern.removeprefix("|".join(special) + "|")
        self._pieces = regex.compile(ordinary, regex.IGNORECASE)
        tokenizer.cache = {}

    def __call__(self, texts: Sequence[str], context_length: int | None = None) -> Tensor:
        """Token numbers (B, context_length); longer texts lose their end."""
        length = context_length or self.context_length
        start, end = self.simple.sot_token_id, self.simple.eot_token_id
        rows = [[start, *self._encode(text, length - 2), end] for text in texts]
        return torch.tensor([row + [0] * (length - len(row)) for row in rows])

    def num_tokens(self, text: str) -> int:
        """Counts the tokens of a whole text, with its start and its end."""
        return len(self._encode(text, len(text.encode()) + 1)) + 2

    def _encode(self, text: str, most: int) -> list[int]:
        """The first `most` tokens; no more is read of the text than they need."""
        tokenizer, ids = self.simple, list[int]()

        # Cleaning goes line by line, at some work for each; lines of blanks come to nothing.
        text = "\n".join(line for line in text.split("\n") if line.strip())
        for piece in self._pieces.finditer(tokenizer.clean_fn(text)):
            letters = "".join(map(tokenizer.byte_encoder.__getitem__, piece[0].encode()))
            ids += [tokenizer.encoder[token] for token in self._tokens(letters, most - len(ids))]
            if len(ids) >= most:
                break
        return ids[:most]

    def _tokens(self, word: str, most: int) -> list[str]:
        """At least the first `most` tokens of a word, whose merging takes the square of its length:
        of a long one, as much is read as gives them."""
        length = 4 * (most + _MARGIN)
        while True:
            tokens = self._merged(word[:length])
            if length >= len(word) or len(tokens) >= most + _MARGIN:
                return tokens
            length *= 2

    def _merged(self, word: str) -> list[str]:
        tokenizer = self.simple
        tokens: list[str] = tokenizer.bpe(word).split(" ")
        if len(word) > _CACHED_WORD:  # it keeps every word that it ever saw
            tokenizer.cache.pop(word, None)
        elif len(tokenizer.cache) > _CACHED_WORDS:
            tokenizer.cache.clear()
        return tokens


@final
@dataclass(frozen=True)
class ByteTokenizer:
    """UTF-8 bytes as 256 token numbers, for tiny models: no vocabulary file is needed."""

    context_length: int

    def __call__(self, texts: Sequence[str], context_length: int | None = None) -> Tensor:
        """Token numbers (B, context_length); longer texts lose their end.

        >>> ByteTokenizer(5)(["a", "abcd"]).tolist()
        [[254, 97, 255, 0, 0], [254, 97, 98, 99, 255]]
        """
        length = context_length or self.context_length
        rows = [[_START, *text.encode()[: length - 2], _END] for text in texts]
        return torch.tensor([row + [_PAD] * (length - len(row)) for row in rows])
