"""Rows that share a prefix: it is stored once, in generation and in training alike.

Shapes: R rows, H heads, G key/value heads, Q new tokens, P prefix, L own tokens, D head width, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from mmemb.llm.decoding.padding import causal_mask, left_pad, real_positions

SHARED_PREFIX_ATTENTION = "mmemb_shared_prefix"


@final
class GrowingLayer(CacheLayerMixin):
    """Keys and values of one layer in a buffer made once: a step copies nothing but itself."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        shape = (*key_states.shape[:2], self.capacity, key_states.shape[3])
        self.keys = key_states.new_empty(shape)
        self.values = value_states.new_empty((*shape[:3], value_states.shape[3]))
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[2]
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def select(self, rows_R: Tensor) -> None:
        keys = self.keys[rows_R, :, : self.length]
        values = self.values[rows_R, :, : self.length]
        self.lazy_initialization(keys, values)
        self.keys[:, :, : self.length] = keys
        self.values[:, :, : self.length] = values

    def join(self, other: GrowingLayer, length: int, capacity: int) -> None:
        """Puts another's rows behind its own; all keep their last `length` tokens."""
        parts = (self.keys, self.values, self.length), (other.keys, other.values, other.length)
        self.keys, self.values = (
            torch.cat([_last(part[kind], part[2], length, capacity) for part in parts])
            for kind in (0, 1)
        )
        self.length, self.capacity = length, capacity

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return self.capacity


def _last(state_RGLD: Tensor, end: int, length: int, capacity: int) -> Tensor:
    """(R, G, capacity, D): the last `length` of `end` tokens, behind zeros if there are fewer."""
    kept = state_RGLD[:, :, max(end - length, 0) : end]
    front = length - kept.shape[2]
    return torch.nn.functional.pad(kept, (0, 0, front, capacity - length))


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
    else:
        layer = shared_prefix.layers[module.layer_idx]
        flat = query.transpose(0, 1).reshape(G, -1, D)
        prefix_scores = (flat @ layer.keys[0].transpose(1, 2)).unflatten(1, (R, -1))
        joint = torch.cat([prefix_scores.transpose(0, 1), scores], dim=-1).softmax(dim=-1)
        on_prefix, on_own = joint.split([joint.shape[-1] - L, L], dim=-1)
        flat = on_prefix.transpose(0, 1).reshape(G, -1, on_prefix.shape[-1])
        mixed = (flat @ layer.values[0]).unflatten(1, (R, -1)).transpose(0, 1)
        mixed = mixed + on_own @ value_RGLD
    return mixed.reshape(R, H, Q, -1).transpose(1, 2).contiguous(), None


AttentionInterface.register(SHARED_PREFIX_ATTENTION, shared_prefix_attention)


def new_cache(model: PreTrainedModel, capacity: int) -> Cache:
    """An empty cache that rows can be selected from."""
    num_layers = model.config.get_text_config().num_hidden_layers
    return Cache(layers=[GrowingLayer(capacity) for _ in range(num_layers)])


def read_prefix(model: PreTrainedModel, prefix: Sequence[int]) -> Cache:
    """Keys and values of a prefix for `read_rows`; with gradient where the model has one.

    Args:
        model: a causal model that runs `SHARED_PREFIX_ATTENTION`.
        prefix: token ids, at least one.
    """
    ids_1P, mask_1P = left_pad([prefix], model.device)
    cache = new_cache(model, len(prefix))
    read_rows(model, ids_1P, mask_1P, None, cache)
    return cache


def read_rows(
    model: PreTrainedModel,
    ids_RQ: Tensor,
    mask_RL: Tensor,
    prefix: Cache | None,
    cache: Cache | None,
    keep: int = 1,
) -> Tensor:
    """Feeds Q new tokens per row behind a prefix that is stored once.

    Args:
        model: a causal model that runs `SHARED_PREFIX_ATTENTION`.
        ids_RQ: the new tokens.
        mask_RL: int64, which of the rows' own tokens up to now are real.
        prefix: what all rows have read before, or None.
        cache: of the rows' own tokens, which grows; None where nothing will follow.
        keep: for how many last tokens logits are wanted.

    Returns:
        logits (R, keep, V).
    """
    before = prefix.get_seq_length() if prefix else 0
    return model(
        input_ids=ids_RQ,
        attention_mask=causal_mask(mask_RL, ids_RQ.shape[1], model.dtype),
        position_ids=real_positions(mask_RL, ids_RQ.shape[1]) + before,
        cache=cache,
        use_cache=cache is not None,
        logits_to_keep=keep,
        shared_prefix=prefix,
    ).logits
