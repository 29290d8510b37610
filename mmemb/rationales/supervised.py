"""Next-token loss on replies alone, as (sum, count), for any model and tokenizer.

Shapes: B rows, L tokens of the longest row, T tokens of the longest reply, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from mmemb.llm.decoding.padding import left_pad
from mmemb.llm.lora import LoraSettings, attach_lora, lora_parameters, save_adapter
from mmemb.losses.terms import LossTerm
from mmemb.records.inputs import Side
from mmemb.records.rationales import Rationale


class ReplyTuner(ABC):
    """A model whose updates learn what it should have written; no module of its trainer.

    Attributes:
        parameters: the updates, by the names that peft saves.

    Args:
        model: the model, which is changed in place.
        tuned: the part of it that gets updates.
        label: name of the model, for a reader of the adapter.
        lora: rank, scale, layers.
        seed: seed of the updates' start.
    """

    def __init__(
        self, model: nn.Module, tuned: nn.Module, label: str, lora: LoraSettings, seed: int
    ) -> None:
        # Frozen before the updates are attached, so that these alone are trained.
        self._model, self._label, self._lora = model.requires_grad_(False), label, lora
        self._tuned = attach_lora(tuned, lora, seed)
        self.parameters: dict[str, nn.Parameter] = lora_parameters(self._tuned)

    def to(self, device: torch.device) -> None:
        """Moves the model, updates included."""
        self._model.to(device)

    @abstractmethod
    def loss(self, sides: Sequence[Side], rationales: Sequence[Rationale]) -> LossTerm:
        """Computes the next-token loss of replies.

        Args:
            sides: B sides that the worker can read.
            rationales: B rationales that should have been written.

        Returns:
            Sum over the replies' tokens, and their number.
        """

    def save(self, folder: Path) -> None:
        """Writes the adapter that the worker loads as `adapter`."""
        save_adapter(self._tuned, self._lora, folder, self._label)


@final
@dataclass(frozen=True, slots=True)
class ReplyBatch:
    """Sides and what should have been written about them, on one rank.

    `step` is the global step that this batch belongs to.
    """

    keys: tuple[str, ...]
    sides: tuple[Side, ...]
    rationales: tuple[Rationale, ...]
    step: int = 0

    def to(self, *args: Any, **kwargs: Any) -> ReplyBatch:
        return self


@final
@dataclass(frozen=True, slots=True)
class ReplyTokens:
    """Prompts and replies, padded on the left, so that all replies end in the last column.

    Attributes:
        ids_BL: int64 token ids, padded with 0.
        mask_BL: int64, 1 where there is a token.
        scored_BT: bool, which of the last T tokens belong to the row's reply.
    """

    ids_BL: Tensor
    mask_BL: Tensor
    scored_BT: Tensor

    @property
    def longest_reply(self) -> int:
        """The number T of tokens in the longest reply."""
        return self.scored_BT.shape[1]


def pack_replies(
    prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]], device: torch.device
) -> ReplyTokens:
    """Packs rows of a prompt and a reply each.

    >>> packed = pack_replies([[5, 6], [7]], [[1], [2, 3]], torch.device("cpu"))
    >>> packed.ids_BL.tolist(), packed.scored_BT.tolist()
    ([[5, 6, 1], [7, 2, 3]], [[False, True], [True, True]])

    Args:
        prompts: B token sequences; none is empty, since a reply's first token is predicted too.
        replies: B token sequences; none is empty.
        device: device of the tensors.
    """
    rows = [[*prompt, *reply] for prompt, reply in zip(prompts, replies, strict=True)]
    ids_BL, mask_BL = left_pad(rows, device)
    # The replies end in the last column too, so their own mask says which tokens are theirs.
    _, scored_BT = left_pad(replies, device)
    return ReplyTokens(ids_BL, mask_BL, scored_BT.bool())


def reply_loss(logits_BKV: Tensor, tokens: ReplyTokens) -> LossTerm:
    """Cross-entropy of the replies' tokens, summed, and their number.

    Args:
        logits_BKV: logits at the last K = T + 1 columns; column k predicts column k + 1, and the
            very last one predicts nothing.
        tokens: the prompts and replies that were read.
    """
    T = tokens.longest_reply
    scored_BT, targets_BT = tokens.scored_BT, tokens.ids_BL[:, -T:]

    # Chosen first: most places of a ragged batch are prompt, and a vocabulary is wide.
    logits_NV = logits_BKV[:, :T][scored_BT].float()
    total = nn.functional.cross_entropy(logits_NV, targets_BT[scored_BT], reduction="sum")
    return LossTerm(total, scored_BT.sum())
