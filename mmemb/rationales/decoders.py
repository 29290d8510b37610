"""Decoders for transformers models: one that shares the few-shot prefix, and one for any model.

Shapes: R rows, H heads, G key/value heads, Q new tokens, P prefix, L own tokens, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from mmemb.rationales.sampling import Decoder

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
        keys, values = self.keys[:, :, : self.length], self.values[:, :, : self.length]
        self.lazy_initialization(keys[rows_R], values[rows_R])
        self.keys[:, :, : self.length] = keys[rows_R]
        self.values[:, :, : self.length] = values[rows_R]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return self.capacity


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


@final
class SharedPrefixDecoder(Decoder):
    """Reads the prefix once in its life; rows hold only what follows it.

    Args:
        model: a causal model loaded with `SHARED_PREFIX_ATTENTION`.
        prefix: token ids that all prompts share, at least one.
        max_new_tokens: how far a prompt may be continued.
    """

    def __init__(self, model: PreTrainedModel, prefix: Sequence[int], max_new_tokens: int) -> None:
        self._model, self._room = model, max_new_tokens
        self._prefix = self._new_cache(len(prefix))
        with torch.inference_mode():
            ids_RQ, mask_RQ = left_pad([prefix], model.device)
            self._feed(ids_RQ, mask_RQ, mask_RQ.cumsum(1) - 1, self._prefix, prefix=None)

    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        ids_RQ, self._mask_RL = left_pad(prompts, self._model.device)
        self._cache = self._new_cache(ids_RQ.shape[1] + self._room)
        return self._advance(ids_RQ)

    def select(self, rows_R: Tensor) -> None:
        rows_R = rows_R.to(self._model.device)
        self._mask_RL = self._mask_RL[rows_R]
        for layer in self._cache.layers:
            layer.select(rows_R)

    def step(self, tokens_R: Tensor) -> Tensor:
        tokens_R1 = tokens_R.to(self._model.device)[:, None]
        self._mask_RL = torch.cat([self._mask_RL, torch.ones_like(tokens_R1)], dim=1)
        return self._advance(tokens_R1)

    def _advance(self, ids_RQ: Tensor) -> Tensor:
        rank_RQ = real_positions(self._mask_RL, ids_RQ.shape[1])
        positions_RQ = rank_RQ + self._prefix.get_seq_length()
        return self._feed(ids_RQ, self._mask_RL, positions_RQ, self._cache, self._prefix)

    def _feed(
        self, ids: Tensor, mask_RL: Tensor, positions: Tensor, cache: Cache, prefix: Cache | None
    ) -> Tensor:
        return self._model(
            input_ids=ids,
            attention_mask=causal_mask(mask_RL, ids.shape[1], self._model.dtype),
            position_ids=positions,
            cache=cache,
            use_cache=True,
            logits_to_keep=1,
            shared_prefix=prefix,
        ).logits[:, -1]

    def _new_cache(self, capacity: int) -> Cache:
        num_layers = self._model.config.get_text_config().num_hidden_layers
        return Cache(layers=[GrowingLayer(capacity) for _ in range(num_layers)])


@final
class WholePromptDecoder(Decoder):
    """For every causal model: reads whole prompts into the model's own kind of cache."""

    def __init__(self, model: PreTrainedModel, prefix: Sequence[int]) -> None:
        self._model, self._prefix = model, list(prefix)

    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        whole = [[*self._prefix, *prompt] for prompt in prompts]
        ids_RQ, self._mask_RL = left_pad(whole, self._model.device)
        self._cache = None
        return self._advance(ids_RQ)

    def select(self, rows_R: Tensor) -> None:
        rows_R = rows_R.to(self._model.device)
        self._cache.reorder_cache(rows_R)  # the one way to pick rows that every cache has
        self._mask_RL = self._mask_RL[rows_R]

    def step(self, tokens_R: Tensor) -> Tensor:
        tokens_R1 = tokens_R.to(self._model.device)[:, None]
        self._mask_RL = torch.cat([self._mask_RL, torch.ones_like(tokens_R1)], dim=1)
        return self._advance(tokens_R1)

    def _advance(self, ids_RQ: Tensor) -> Tensor:
        output = self._model(
            input_ids=ids_RQ,
            attention_mask=self._mask_RL,
            position_ids=real_positions(self._mask_RL, ids_RQ.shape[1]),
            cache=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._cache = output.cache
        return output.logits[:, -1]


def left_pad(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids (R, Q), padded on the left with 0, and their int64 mask (R, Q)."""
    width = max(map(len, prompts))
    ids = [[0] * (width - len(p)) + list(p) for p in prompts]
    mask = [[0] * (width - len(p)) + [1] * len(p) for p in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def real_positions(mask_RL: Tensor, num_new: int) -> Tensor:
    """Positions (R, Q) of the last `num_new` tokens, padding not counted.

    >>> real_positions(torch.tensor([[0, 1, 1], [1, 1, 1]]), 2).tolist()
    [[0, 1], [1, 2]]
    """
    return (mask_RL.cumsum(1)[:, mask_RL.shape[1] - num_new :] - 1).clamp(min=0)


def causal_mask(mask_RL: Tensor, num_new: int, dtype: torch.dtype) -> Tensor:
    """Additive mask (R, 1, Q, L): a new token sees real tokens up to itself.

    A padding token sees itself as well, so that no row of scores is empty.
    """
    L = mask_RL.shape[1]
    rank_L = torch.arange(L, device=mask_RL.device)
    query_Q = rank_L[L - num_new :, None]
    seen = (rank_L <= query_Q) & (mask_RL[:, None, :].bool() | (rank_L == query_Q))
    return torch.zeros(seen.shape, dtype=dtype, device=mask_RL.device).masked_fill(
        ~seen, torch.finfo(dtype).min
    )[:, None]
