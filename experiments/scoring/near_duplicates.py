"""Finds items of one set that are copies, or nearly, of others: by bytes, looks, or vectors.

Shapes: N items that are asked about, M items they may come from, D numbers of an item.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

from mmemb.media.resampling import resample

_SIDE = 16
_BLOCK_NUMBERS = 2**24


def looks(picture: Tensor) -> Tensor:
    """Returns the looks of a picture from afar: 16 x 16 colours between 0 and 1, (768,).

    Another size, format or compression changes it by some hundredths at most; a crop, a border or a
    mirror image changes it more, and is not found by it.

    Args:
        picture: uint8 (3, H, W).
    """
    small = resample(picture, (_SIDE, _SIDE), as_float=lambda lines: lines.float() / 255)
    return small.flatten()


def text_key(text: str) -> str:
    """Returns a hash of a text that letters' case and spaces do not change; "" of none.

    >>> text_key("A  flag ") == text_key("a flag")
    True
    """
    plain = " ".join(text.lower().split())
    return hashlib.sha256(plain.encode()).hexdigest() if plain else ""


def nearest(item_ND: Tensor, source_MD: Tensor) -> tuple[Tensor, Tensor]:
    """Finds the nearest item of the source, in blocks.

    Args:
        item_ND: fp32.
        source_MD: fp32, at least one.

    Returns:
        Root mean square difference (N,), and the source's row (N,).
    """
    best_N, row_N = _best(
        item_ND,
        source_MD,
        lambda a, b: -torch.cdist(a, b, compute_mode="use_mm_for_euclid_dist").square(),
    )
    # The root comes last: squares keep the order, and one root per item is enough.
    return (-best_N / item_ND.shape[1]).sqrt(), row_N


def most_alike(item_ND: Tensor, source_MD: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the highest cosine with a vector of the source (N,), and its row (N,).

    Args:
        item_ND: unit vectors.
        source_MD: unit vectors, at least one.
    """
    return _best(item_ND, source_MD, lambda a, b: a @ b.T)


def _best(
    item_ND: Tensor, source_MD: Tensor, score: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Returns the highest score with an item of the source (N,), and its row (N,)."""
    best_N = torch.full((len(item_ND),), -torch.inf)
    row_N = torch.zeros(len(item_ND), dtype=torch.long)

    # The scores of a block are at most 2^24 numbers, 64 MiB of fp32.
    step = max(1, _BLOCK_NUMBERS // max(1, len(item_ND)))
    for start in range(0, len(source_MD), step):
        most_N, place_N = score(item_ND, source_MD[start : start + step]).max(1)
        row_N = torch.where(most_N > best_N, place_N + start, row_N)
        best_N = torch.maximum(most_N, best_N)
    return best_N, row_N
