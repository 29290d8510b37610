"""Rows that share a prefix: it is stored once, in generation and in training alike.

Shapes: R rows, H heads, G key/value heads, Q new tokens, P prefix, L own tokens, D head width, V
vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache
from transformers.masking_utils import eager_mask

SHARED_PREFIX_ATTENTION = "mmemb_shared_prefix"


def shared_prefix_attention(
    module: torch.nn.Module,
    query_RHQD: Tensor,
    key_RGLD: Tensor,
    value_RGLD: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    shared_prefix: Cache | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention over a prefix that is stored once for all rows, and over each row's own tokens.

    The prefix part is one matrix product over all rows; nothing is copied per row.

    Args:
        module: the attention layer; its `layer_idx` names the prefix's layer.
        query_RHQD: queries.
        key_RGLD: the rows' own keys.
        value_RGLD: the rows' own values.
        attention_mask: additive (R, 1, Q, L) over own tokens; the prefix is open to all.
        scaling: factor of the scores, D ** -0.5 by default.
        shared_prefix: cache of one row that holds the prefix, or None.
        **kwargs: what models pass to other attention functions; not used.

    Returns:
        The mixed values (R, Q, H, D), and None in place of attention weights.
    """
    R, H, Q, D = query_RHQD.shape
    G, L = key_RGLD.shape[1:3]
    query = (query_RHQD * (D**-0.5 if scaling is None else scaling)).reshape(R, G, -1, D)
    scores = query @ key_RGLD.transpose(2, 3)
    if attention_mask is not None:
        scores = (scores.view(R, H, Q, L) + attention_mask).view_as(scores)

    if shared_prefix is None:
        mixed = scores.softmax(dim=-1) @ value_RGLD
        return mixed.reshape(R, H, Q, -1).transpose(1, 2).contiguous(), None

    # All rows look at the same keys, so their queries are rows of one product.
    layer = shared_prefix.layers[module.layer_idx]
    flat = query.transpose(0, 1).reshape(G, -1, D)
    prefix_scores = (flat @ layer.keys[0].transpose(1, 2)).unflatten(1, (R, -1)).transpose(0, 1)

    joint = torch.cat([prefix_scores, scores], dim=-1).softmax(dim=-1)
    on_prefix, on_own = joint.split([joint.shape[-1] - L, L], dim=-1)

    flat = on_prefix.transpose(0, 1).reshape(G, -1, on_prefix.shape[-1])
    mixed = (flat @ layer.values[0]).unflatten(1, (R, -1)).transpose(0, 1) + on_own @ value_RGLD
    return mixed.reshape(R, H, Q, -1).transpose(1, 2).contiguous(), None


AttentionInterface.register(SHARED_PREFIX_ATTENTION, shared_prefix_attention)
AttentionMaskInterface.register(SHARED_PREFIX_ATTENTION, eager_mask)  # additive
