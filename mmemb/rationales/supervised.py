"""Fitting of a writer's model on rationales: the M-step of a second EM round.

See docs/method.md section 2. Shapes: B rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import nn

from mmemb.llm.lora import LoraSettings, attach_lora, lora_parameters, save_adapter
from mmemb.records.inputs import Side
from mmemb.records.loss_term import LossTerm
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
            sides: B sides that the writer can read.
            rationales: B rationales that should have been written.

        Returns:
            Sum over the replies' tokens, and their number.
        """

    def save(self, folder: Path) -> None:
        """Writes the adapter that the writer loads as `adapter`."""
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


def check_no_adapter(adapter: str | None) -> None:
    """Raises ValueError about a writer to be fitted that has an adapter already."""
    if adapter:
        raise ValueError(
            f"The writer to be fitted has the adapter {adapter}, and a second one on top of it "
            "could not be saved. Every EM round fits the base model anew: leave `adapter` out and "
            "give the rationales kept in the last round."
        )
