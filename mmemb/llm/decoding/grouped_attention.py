"""Attention of models whose heads share keys and values, without a copy of those for every head.

Shapes: R rows, H heads, G key/value heads, N = H / G heads of a group, Q new tokens, L keys, D head
width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

GROUPED_ATTENTION = "mmemb_grouped"


def grouped_attention(
    module: nn.Module,
    query_RHQD: Tensor,
    key_RGLD: Tensor,
    value_RGLD: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Computes what transformers' `sdpa` computes, without repeated keys and values under a mask.

    The heads of a group are further queries instead, where that copies less: few new tokens behind
    a long prefix, in inference. (For a backward pass every layer would keep its copy of the mask.)

    Args:
        module: the attention layer.
        query_RHQD: queries.
        key_RGLD: keys, read and new.
        value_RGLD: values.
        attention_mask: (R, 1, Q, L), boolean or additive; None = all, or causal.
        dropout: probability.
        scaling: factor of the scores; None = D ** -0.5.
        **kwargs: what models pass to `sdpa`.

    Returns:
        The mixed values (R, Q, H, D), and None in place of attention weights.
    """
    R, H, Q, D = query_RHQD.shape
    G = key_RGLD.shape[1]
    if (
        attention_mask is None
        or torch.is_grad_enabled()
        or kwargs.get("position_bias") is not None
        or not _copies_less(attention_mask, key_RGLD, H // G)
    ):
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query_RHQD, key_RGLD, value_RGLD, attention_mask, dropout, scaling, **kwargs
        )

    # One mask for each head of a group, in place of keys and values for each.
    mixed = torch.nn.functional.scaled_dot_product_attention(
        query_RHQD.reshape(R, G, -1, D),
        key_RGLD,
        value_RGLD,
        attn_mask=attention_mask.repeat(1, 1, H // G, 1),
        dropout_p=dropout,
        scale=scaling,
    )
    return mixed.reshape(R, H, Q, -1).transpose(1, 2).contiguous(), None


def _copies_less(mask_R1QL: Tensor, key_RGLD: Tensor, group: int) -> bool:
    """Compares `group` masks with the copies of keys and values for the other heads."""
    if mask_R1QL.shape[1] > 1:  # a mask of its own for every head
        return False
    masks = group * mask_R1QL.shape[2] * mask_R1QL.element_size()
    G, D = key_RGLD.shape[1], key_RGLD.shape[3]
    return masks < 2 * (group - 1) * G * D * key_RGLD.element_size()


AttentionInterface.register(GROUPED_ATTENTION, grouped_attention)
AttentionMaskInterface.register(GROUPED_ATTENTION, sdpa_mask)


def group_heads(model: PreTrainedModel) -> None:
    """Switches a model that runs `sdpa` to `grouped_attention`; others stay as they are."""
    if model.config._attn_implementation == "sdpa" and model._supports_attention_backend:
        model.set_attn_implementation(GROUPED_ATTENTION)
