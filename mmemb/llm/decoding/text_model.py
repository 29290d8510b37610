"""A causal language model as `CachedRows` reads it, behind a prefix that all prompts share.

Shapes: R rows, Q new tokens, L tokens of a row up to now, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast

from mmemb.llm.decoding.cached_rows import CachedRows
from mmemb.llm.decoding.padding import left_pad, real_positions
from mmemb.llm.decoding.shared_prefix import SHARED_PREFIX_ATTENTION
from mmemb.llm.prompts.chat_prompt import Prompt


@final
class TextModel:
    """Takes the place of a model of transformers in `CachedRows`; its states are logits.

    Some models scale or cap what their head gives, so logits are asked of the model as a whole.

    Args:
        model: any causal model; one that runs `SHARED_PREFIX_ATTENTION` if there is a prefix.
        prefix: token ids in front of all prompts, which are read once; none for whole prompts.
    """

    def __init__(self, model: PreTrainedModel, prefix: Sequence[int] = ()) -> None:
        self.model, self.config = model, model.config
        self.name_or_path = model.name_or_path
        with torch.inference_mode():
            self.prefix = read_prefix(model, prefix) if prefix else None

    def base_model(
        self, input_ids: Tensor, attention_mask: Tensor, cache: Any, **inputs: Any
    ) -> BaseModelOutputWithPast:
        """Logits (R, 1, V) behind each row's last token, and the cache."""
        output = read_behind(
            self.model, self.prefix, input_ids, attention_mask, cache=cache, use_cache=True
        )
        return BaseModelOutputWithPast(last_hidden_state=output.logits, cache=output.cache)

    def get_output_embeddings(self) -> nn.Module:
        """Returns an identity, since states are logits already."""
        return nn.Identity()

    def get_decoder(self) -> PreTrainedModel:
        """The module that holds the blocks."""
        return self.model

    def parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the model."""
        return self.model.parameters()


def read_prefix(model: PreTrainedModel, prefix: Sequence[int]) -> Cache:
    """Keys and values of a prefix for `read_behind`; with gradient where the model has one.

    Args:
        model: a causal model that runs `SHARED_PREFIX_ATTENTION`.
        prefix: token ids, at least one.
    """
    ids_1P, mask_1P = left_pad([prefix], model.device)
    return read_behind(model, None, ids_1P, mask_1P, use_cache=True).cache


def read_behind(
    model: PreTrainedModel,
    prefix: Cache | None,
    ids_RQ: Tensor,
    mask_RL: Tensor,
    keep: int = 1,
    **arguments: Any,
) -> Any:
    """Feeds Q new tokens per row behind a prefix that is stored once.

    Args:
        model: any causal model; one that runs `SHARED_PREFIX_ATTENTION` if there is a prefix.
        prefix: what all rows have read before, or None.
        ids_RQ: the new tokens.
        mask_RL: int64, which of the rows' own tokens up to now are real.
        keep: for how many last tokens logits are wanted.
        **arguments: of the model, such as the cache of the rows' own tokens.

    Returns:
        The model's output, its logits (R, keep, V).
    """
    position_RQ = real_positions(mask_RL, ids_RQ.shape[1])
    if prefix is not None:
        position_RQ = position_RQ + prefix.get_seq_length()
        arguments["shared_prefix"] = prefix  # only models that share a prefix take this argument
    return model(
        input_ids=ids_RQ,
        attention_mask=mask_RL,
        position_ids=position_RQ,
        logits_to_keep=keep,
        **arguments,
    )


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

    whole = [Prompt((*prefix, *probe)) for probe in probes]
    expected = CachedRows(TextModel(model), whole).logits_RV.float()

    # The shared way is tried on the real model and undone if any logit differs.
    usual = model.config._attn_implementation
    model.set_attn_implementation(SHARED_PREFIX_ATTENTION)
    suffixes = [Prompt(tuple(probe)) for probe in probes]
    shared = CachedRows(TextModel(model, prefix), suffixes).logits_RV.float()
    if (shared - expected).abs().max() / expected.std() < tolerance:
        return True

    model.set_attn_implementation(usual)
    return False
