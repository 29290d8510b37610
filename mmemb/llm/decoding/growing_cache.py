"""A cache of keys and values in buffers that are made once, from which rows leave and into which
others come.

Shapes: R rows, G key/value heads, L tokens, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin


@final
class GrowingLayer(CacheLayerMixin):
    """Keys and values of one layer: a step copies nothing but its own tokens.

    Args:
        capacity: the most tokens of a row.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Makes buffers for as many rows as are given."""
        shape = (*key_states.shape[:2], self.capacity, key_states.shape[3])
        self.keys = key_states.new_empty(shape)
        self.values = value_states.new_empty((*shape[:3], value_states.shape[3]))
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Adds tokens; returns all keys and values up to now."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)

        end = self.length + key_states.shape[2]
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def select(self, rows_R: Tensor) -> None:
        """Keeps these rows, in this order; a row may come repeatedly."""
        keys = self.keys[rows_R, :, : self.length]
        values = self.values[rows_R, :, : self.length]

        # The buffers are new, so rows that were forked from this layer stay as they are.
        self.lazy_initialization(keys, values)
        self.keys[:, :, : self.length] = keys
        self.values[:, :, : self.length] = values

    def join(self, others: Sequence[GrowingLayer], length: int, capacity: int) -> None:
        """Puts the rows of others behind its own; all keep their last `length` tokens."""
        layers = (self, *others)
        keys = [_last(layer.keys, layer.length, length, capacity) for layer in layers]
        values = [_last(layer.values, layer.length, length, capacity) for layer in layers]
        self.keys, self.values = torch.cat(keys), torch.cat(values)
        self.length, self.capacity = length, capacity

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Number of keys that a query sees, and where they begin."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens up to now."""
        return self.length

    def get_max_length(self) -> int:
        """The most tokens of a row."""
        return self.capacity


def _last(state_RGLD: Tensor, end: int, length: int, capacity: int) -> Tensor:
    """(R, G, capacity, D): the last `length` of `end` tokens, behind zeros if there are fewer."""
    # Tokens stand next to the place of the one that follows; a mask hides the zeros in front.
    kept = state_RGLD[:, :, max(end - length, 0) : end]
    return pad(kept, (0, 0, length - kept.shape[2], capacity - length))


def growing_cache(model: PreTrainedModel, capacity: int) -> Cache:
    """An empty cache for `capacity` tokens a row."""
    num_layers = model.config.get_text_config().num_hidden_layers
    return Cache(layers=[GrowingLayer(capacity) for _ in range(num_layers)])
