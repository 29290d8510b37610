"""Decoders for transformers models: one that shares the few-shot prefix, and one for any model.

Shapes: R rows, Q new tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from mmemb.llm.decoding.hidden_states import end_states
from mmemb.llm.decoding.padding import left_pad, real_positions
from mmemb.llm.decoding.shared_prefix import (
    SHARED_PREFIX_ATTENTION,
    new_cache,
    read_prefix,
    read_rows,
)
from mmemb.llm.decoding.text_drafts import Decoder


@final
class SharedPrefixDecoder(Decoder):
    """Reads the prefix once in its life; rows hold only what follows it.

    Args:
        model: a causal model loaded with `SHARED_PREFIX_ATTENTION`.
        prefix: token ids that all prompts share, at least one.
        max_new_tokens: how far a prompt may be continued.
        probe_layer: block whose states at the ends of prompts are noted; None notes nothing.
    """

    can_admit = True

    def __init__(
        self,
        model: PreTrainedModel,
        prefix: Sequence[int],
        max_new_tokens: int,
        probe_layer: int | None = None,
    ) -> None:
        self._model, self._room, self._probe_layer = model, max_new_tokens, probe_layer
        with torch.inference_mode():
            self._prefix = read_prefix(model, prefix)

    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        ids_RQ, self._mask_RL = left_pad(prompts, self._model.device)
        self._cache = new_cache(self._model, ids_RQ.shape[1] + self._room)
        with end_states(self._model, self._probe_layer) as states:
            logits = self._advance(ids_RQ)
        self.states_UH = states[0] if states else None
        return logits

    def admit(self, prompts: Sequence[Sequence[int]], rows_R: Tensor) -> Tensor:
        present_RL, cache = self._mask_RL, self._cache
        logits_RV = self.begin(prompts, rows_R)
        masks = (present_RL, self._mask_RL)
        length = max(int(mask_RL.sum(1).max()) for mask_RL in masks)
        for layer, fresh in zip(cache.layers, self._cache.layers, strict=True):
            layer.join(fresh, length, length + self._room)
        self._cache = cache
        self._mask_RL = torch.cat([pad(m, (length - m.shape[1], 0)) for m in masks])
        return logits_RV

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
        return read_rows(self._model, ids_RQ, self._mask_RL, self._prefix, self._cache)[:, -1]


@final
class WholePromptDecoder(Decoder):
    """For every causal model: reads whole prompts into the model's own kind of cache."""

    def __init__(
        self, model: PreTrainedModel, prefix: Sequence[int], probe_layer: int | None = None
    ) -> None:
        self._model, self._prefix, self._probe_layer = model, list(prefix), probe_layer

    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        whole = [[*self._prefix, *prompt] for prompt in prompts]
        ids_RQ, self._mask_RL = left_pad(whole, self._model.device)
        self._cache = None
        with end_states(self._model, self._probe_layer) as states:
            logits = self._advance(ids_RQ)
        self.states_UH = states[0] if states else None
        return logits

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


@torch.inference_mode()
def share_prefix(
    model: PreTrainedModel,
    prefix: Sequence[int],
    probes: Sequence[Sequence[int]],
    tolerance: float,
) -> bool:
    """Switches a model to `SHARED_PREFIX_ATTENTION` if it provably computes what it did before.

    Args:
        model: any causal model; it stays as it is if the answer is no.
        prefix: token ids that all prompts share.
        probes: some continuations to compare on, of unequal lengths.
        tolerance: largest difference of a logit, in standard deviations of all logits.
    """
    if not (model._supports_attention_backend and prefix):
        return False
    expected = WholePromptDecoder(model, prefix).start(probes).float()
    usual = model.config._attn_implementation
    model.set_attn_implementation(SHARED_PREFIX_ATTENTION)
    found = SharedPrefixDecoder(model, prefix, max_new_tokens=1).start(probes).float()
    if (found - expected).abs().max() / expected.std() < tolerance:
        return True
    model.set_attn_implementation(usual)
    return False
