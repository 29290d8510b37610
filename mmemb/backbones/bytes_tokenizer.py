"""A tokenizer without a vocabulary file: UTF-8 bytes, for tiny models in tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

# Bytes that UTF-8 never uses. CLIP reads out at the largest number: that is the end.
_START, _END, _PAD = 254, 255, 0


@final
@dataclass(frozen=True)
class ByteTokenizer:
    """Called like open_clip's tokenizers; 256 token numbers."""

    context_length: int

    def __call__(self, texts: Sequence[str], context_length: int | None = None) -> Tensor:
        """Token numbers (B, context_length); longer texts lose their end.

        >>> ByteTokenizer(5)(["a", "abcd"]).tolist()
        [[254, 97, 255, 0, 0], [254, 97, 98, 99, 255]]
        """
        length = context_length or self.context_length
        rows = [[_START, *text.encode()[: length - 2], _END] for text in texts]
        return torch.tensor([row + [_PAD] * (length - len(row)) for row in rows])
