"""Rows of tokens under way in a causal model's cache: read, forked, continued; never cropped.

Positions are always given, never left to the model: transformers' vision-language models keep
`rope_deltas` of the latest prefill on the module, so that another prefill in between would shift
older rows without a word; and they count padding. Shapes: R rows, Q new tokens, L tokens of a row
up to now, V vocabulary, H width.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from mmemb.llm.decoding.padding import real_positions
from mmemb.llm.prompts.chat_prompt import Prompt

PaddingSide = Literal["left", "right"]

READ_TOGETHER = 2048
"""The most tokens that are read at once: reading is bound by arithmetic, so more gain little."""

_LIKE_LENGTH = 0.8  # of the longest prompt of a part: shorter ones would be padded much


class Batch(NamedTuple):
    """Padded prompts as a model takes them.

    Attributes:
        inputs: `input_ids`, `attention_mask`, positions, pixels and grids.
        end_R: where each row's last real token stands.
        delta_R: how far the position behind a prompt is ahead of its number of tokens (pictures
            take fewer positions than tokens).
    """

    inputs: dict[str, Tensor]
    end_R: Tensor
    delta_R: Tensor


def collate(model: Any, prompts: Sequence[Prompt], side: PaddingSide) -> Batch:
    """Pads prompts to one length and computes their positions.

    Args:
        model: a model of transformers with a language-model head.
        prompts: R of them.
        side: of the padding; the vectors do not depend on it.
    """
    device = next(model.parameters()).device
    width = max(map(len, prompts))

    def padded(values: Tensor) -> Tensor:
        room = width - len(values)
        return pad(values, (room, 0) if side == "left" else (0, room))

    ids = torch.stack([padded(torch.tensor(prompt.ids)) for prompt in prompts])
    mask = torch.stack([padded(torch.ones(len(prompt), dtype=torch.long)) for prompt in prompts])
    inputs = {"input_ids": ids, "attention_mask": mask}
    for name in prompts[0].kinds:
        inputs[name] = torch.stack([padded(prompt.kinds[name]) for prompt in prompts])
    inputs |= _joined([prompt.media for prompt in prompts])
    inputs = {name: value.to(device) for name, value in inputs.items()}

    positions, delta_R = _positions(model, inputs)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    end_R = lengths - 1 if side == "right" else torch.full_like(lengths, width - 1)
    return Batch(inputs | {"position_ids": positions}, end_R, delta_R)


@final
class CachedRows:
    """Rows that a model has read and may go on with.

    Args:
        model: a model of transformers with a language-model head, or a `TextModel`.
        prompts: R of them, read at once.
        room: how many tokens will follow; then their places are made at once, where a model's own
            cache copies all that it holds at every step.
    """

    def __init__(self, model: Any, prompts: Sequence[Prompt], room: int = 0) -> None:
        self.model, self.room = model, room
        batch = collate(model, prompts, "left")  # the next token follows at the right
        self.mask_RL, self.delta_R = batch.inputs["attention_mask"], batch.delta_R

        self.cache: Any = None
        self.can_join = bool(room) and _keeps_all_keys(model)
        if self.can_join:
            from mmemb.llm.decoding.growing_cache import growing_cache

            self.cache = growing_cache(model, self.mask_RL.shape[1] + room)

        self.state_RH = self._read(**batch.inputs)[:, -1]
        """The state after the last token of each row, final norm included."""

    @property
    def logits_RV(self) -> Tensor:
        """Logits of each row's next token."""
        return self.next_logits(torch.arange(len(self.state_RH)))

    def next_logits(self, rows_N: Tensor) -> Tensor:
        """Logits (N, V) of the next token of some rows."""
        return head(self.model)(self.state_RH[rows_N.to(self.state_RH.device)])  # type: ignore[no-any-return]

    @classmethod
    def of_sorted(cls, model: Any, prompts: Sequence[Prompt], room: int) -> CachedRows:
        """Reads prompts that are sorted by length, some at a time, so that little is padded, and
        goes on with all of them together.

        Args:
            model: as of the class.
            prompts: R of them.
            room: how many tokens will follow, at least one.
        """
        if not _keeps_all_keys(model):
            return cls(model, prompts, room)

        first, *others = (cls(model, part, room) for part in parts_of_sorted(prompts))
        first.join(others)
        return first

    def join(self, others: Sequence[CachedRows]) -> None:
        """Goes on with the rows of others as well, behind its own; only where it `can_join`.

        All rows were padded at the left, and none at the right: each one's real tokens stand
        together at its end.
        """
        assert self.can_join
        if not others:
            return

        # Columns that only rows held which have left are dropped.
        rows = (self, *others)
        length = max(int(each.mask_RL.sum(1).max()) for each in rows)
        for layer, *fresh in zip(*(each.cache.layers for each in rows), strict=True):
            layer.join(fresh, length, length + self.room)

        masks = [pad(each.mask_RL, (length - each.mask_RL.shape[1], 0)) for each in rows]
        self.mask_RL = torch.cat(masks)
        self.delta_R = torch.cat([each.delta_R for each in rows])
        self.state_RH = torch.cat([each.state_RH for each in rows])

    def select(self, rows_R: Tensor) -> None:
        """Goes on with these rows, in this order; a row may come repeatedly."""
        rows_R = rows_R.to(self.mask_RL.device)
        if self.can_join:
            for layer in self.cache.layers:
                layer.select(rows_R)
        else:
            self.cache.reorder_cache(rows_R)  # the one way to pick rows that every other cache has

        self.mask_RL, self.delta_R = self.mask_RL[rows_R], self.delta_R[rows_R]
        self.state_RH = self.state_RH[rows_R]

    def fork(self, rows_R: Tensor) -> CachedRows:
        """These rows under way by themselves; the present ones stay as they are."""
        forked = copy.copy(self)
        forked.cache = copy.copy(self.cache)
        forked.cache.layers = [_fork(layer) for layer in self.cache.layers]
        forked.select(rows_R)
        return forked

    def feed(self, ids_RQ: Tensor) -> Tensor:
        """Reads Q more tokens of text a row; returns the states (R, Q, H) behind them."""
        ids_RQ = ids_RQ.to(self.mask_RL.device)
        own_RQ = torch.arange(ids_RQ.shape[1], device=ids_RQ.device).expand(ids_RQ.shape)
        inputs = {"input_ids": ids_RQ, "attention_mask": torch.ones_like(ids_RQ)}
        inputs["position_ids"] = _as_axes(self.model, own_RQ)
        return self._go_on(Batch(inputs, own_RQ[:, -1], torch.zeros_like(self.delta_R)))

    def feed_prompts(self, prompts: Sequence[Prompt]) -> Tensor:
        """Reads more text or pictures behind each row, padded at the right.

        Args:
            prompts: R of them. Where they differ in length, a model with recurrent layers must not
                be fed again: padding would enter its state.

        Returns:
            The states (R, Q, H).
        """
        return self._go_on(collate(self.model, prompts, "right"))

    def _go_on(self, batch: Batch) -> Tensor:
        inputs = dict(batch.inputs)
        before_R = self.mask_RL.sum(1) + self.delta_R
        real_RQ = inputs.pop("attention_mask")
        self.mask_RL = torch.cat([self.mask_RL, real_RQ], dim=1)

        # Positions were counted from 0; there may be axes in front of the rows.
        axes = inputs["position_ids"].ndim - 2
        inputs["position_ids"] = inputs["position_ids"] + before_R[(None,) * axes + (..., None)]
        self.delta_R = self.delta_R + batch.delta_R

        state_RQH = self._read(attention_mask=self.mask_RL, **inputs)
        rows_R = torch.arange(len(real_RQ), device=real_RQ.device)
        self.state_RH = state_RQH[rows_R, batch.end_R]
        return state_RQH

    def _read(self, **inputs: Tensor) -> Tensor:
        output = self.model.base_model(**inputs, cache=self.cache, use_cache=True)
        self.cache = output.cache
        return output.last_hidden_state  # type: ignore[no-any-return]


def parts_of_sorted(prompts: Sequence[Prompt]) -> list[list[Prompt]]:
    """Cuts prompts, the longest of which come first, into parts that are read at once."""
    parts: list[list[Prompt]] = []
    for prompt in prompts:
        longest = len(parts[-1][0]) if parts else 0
        is_alike = bool(parts) and len(prompt) >= _LIKE_LENGTH * longest
        if is_alike and (len(parts[-1]) + 1) * longest <= READ_TOGETHER:
            parts[-1].append(prompt)
        else:
            parts.append([prompt])
    return parts


def is_recurrent(model: Any) -> bool:
    """Tells whether some layers keep a state instead of keys: padding in a row would enter it."""
    return any("attention" not in kind or "linear" in kind for kind in _layer_kinds(model))


def head(model: Any) -> nn.Module:
    """The layer from states to logits."""
    return model.get_output_embeddings()  # type: ignore[no-any-return]


def _keeps_all_keys(model: Any) -> bool:
    """Tells whether every layer looks at all tokens: windows need caches of their own."""
    return all(kind == "full_attention" for kind in _layer_kinds(model))


def _layer_kinds(model: Any) -> Sequence[str]:
    return getattr(model.config.get_text_config(), "layer_types", None) or ()


def _fork(layer: Any) -> Any:
    """Copies a layer of a cache for rows that go on by themselves.

    Keys and values are replaced whenever rows are picked or grow, so they need no copy here;
    recurrent states are written in place.
    """
    from transformers.cache_utils import DynamicLayer

    from mmemb.llm.decoding.growing_cache import GrowingLayer

    replaced = isinstance(layer, (DynamicLayer, GrowingLayer))
    return copy.copy(layer) if replaced else copy.deepcopy(layer)


def _joined(media: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    names = dict.fromkeys(name for tensors in media for name in tensors)
    return {
        name: torch.cat([tensors[name] for tensors in media if name in tensors]) for name in names
    }


def _positions(model: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Positions of all tokens, (3, R, L) for models with axes of time, height and width, and how
    far each row is ahead of its count."""
    mask_RL = inputs["attention_mask"]
    index = getattr(model.base_model, "get_rope_index", None)
    if index is None or "mm_token_type_ids" not in inputs:  # nothing but text
        counted_RL = real_positions(mask_RL, mask_RL.shape[1])
        return _as_axes(model, counted_RL), torch.zeros_like(mask_RL[:, 0])

    names = set(inspect.signature(index).parameters)
    positions_3RL = index(**{name: value for name, value in inputs.items() if name in names})[0]

    # Not the model's own `rope_deltas`: they go on from the largest position, which after a short
    # text can be the time of an earlier clip, where one whole sequence goes on from the last token.
    last_R = (mask_RL.cumsum(1) * mask_RL).argmax(1)
    end_2R = positions_3RL[1:, torch.arange(len(last_R), device=last_R.device), last_R]
    return positions_3RL, end_2R.max(0).values + 1 - mask_RL.sum(1)


def _as_axes(model: Any, position_RQ: Tensor) -> Tensor:
    """Positions of text: the same along every axis of a model that has several."""
    has_axes = hasattr(model.base_model, "get_rope_index")
    return position_RQ.expand(3, -1, -1) if has_axes else position_RQ
