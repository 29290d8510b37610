"""Token sequences of the joint encoder: what is read, in which order, and with which weight.

It needs no weights of a model: text and picture tokens enter as numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, final

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmemb.backbones.base import check_policy
from mmemb.records.inputs import Side
from mmemb.records.rationales import Rationale

LONG_RATIONALE = ("truncate", "drop", "error")


@dataclass(frozen=True, slots=True)
class Row:
    """Tokens that the encoder reads in one go, as parallel lists.

    Numbers in `ids` from the vocabulary's size on are picture tokens of the batch, in order.
    """

    ids: list[int]
    segments: list[int]


@final
@dataclass(frozen=True)
class SequenceBuilder:
    """Builds `[CLS] pictures, instruction, text [SEP] thought, answer [SEP]` for each side.

    And, for each answer, `[CLS] instruction, answer [SEP]`: the query as the answer restates it.

    Attributes:
        tokenizer: a transformers tokenizer with CLS and SEP.
        vocabulary: number of the first picture token.
        max_length: what the encoder can read in all.
    """

    tokenizer: Any
    vocabulary: int
    max_length: int
    max_text_tokens: int
    max_rationale_tokens: int
    long_rationale: str

    def __post_init__(self) -> None:
        check_policy(self.long_rationale, LONG_RATIONALE, "long_rationale")

    def build(
        self, sides: Sequence[Side], rationales: Sequence[Rationale | None], tokens_each: int
    ) -> tuple[list[Row], dict[int, Row]]:
        """One row per side, and one per answer by its side's position.

        Args:
            sides: B sides.
            rationales: one per side, or None.
            tokens_each: how many tokens each picture takes.
        """
        instructions = self._tokenize([side.instruction for side in sides])
        texts = self._tokenize([side.text for side in sides])
        thoughts = self._tokenize(
            [rationale.thinking if rationale else "" for rationale in rationales]
        )
        answers = self._tokenize(
            [rationale.answer if rationale else "" for rationale in rationales]
        )

        rows, restated, start = [], {}, self.vocabulary
        for i, side in enumerate(sides):
            end = start + tokens_each * len(side.media)

            # The cut is at the end, so a text loses its own tokens before those of its instruction.
            words = (instructions[i] + texts[i])[: self.max_text_tokens]
            thought, answer = self._fit(thoughts[i], answers[i])
            rows.append(self._row([*range(start, end), *words], thought + answer))

            # Without pictures and text: this reading must not see the question.
            if answer:
                restated[i] = self._row([*instructions[i][: self.max_text_tokens], *answer], [])
            start = end
        return rows, restated

    def num_words(self, side: Side) -> int:
        """Counts the tokens of a side's instruction and text, before any cut."""
        return sum(map(len, self._tokenize([side.instruction, side.text])))

    def words(self, row: Row) -> str:
        """A row's tokens as text; neighbouring picture tokens are one word with their number."""
        texts: list[str] = []
        for is_picture, ids in groupby(row.ids, lambda number: number >= self.vocabulary):
            numbers = list(ids)
            words = [f"<{len(numbers)} picture tokens>"]
            texts += words if is_picture else self.tokenizer.convert_ids_to_tokens(numbers)
        return " ".join(texts)

    def _row(self, first: list[int], second: list[int]) -> Row:
        start, end = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        head = [start, *first, end]
        tail = [*second, end] if second else []
        if len(head) + len(tail) > self.max_length:
            raise ValueError(
                f"a side takes {len(head) + len(tail)} tokens, the encoder reads at most "
                f"{self.max_length}: give it fewer pictures or frames, or lower "
                "max_text_tokens and max_rationale_tokens."
            )
        return Row([*head, *tail], [0] * len(head) + [1] * len(tail))

    def _fit(self, thought: list[int], answer: list[int]) -> tuple[list[int], list[int]]:
        """Applies `long_rationale`; the answer stands last, so cutting the front spares it."""
        excess = len(thought) + len(answer) - self.max_rationale_tokens
        if excess <= 0:
            return thought, answer

        if self.long_rationale == "error":
            raise ValueError(
                f"a rationale has {len(thought) + len(answer)} tokens, more than "
                f"max_rationale_tokens={self.max_rationale_tokens}: raise that, or choose "
                "long_rationale: truncate or drop."
            )

        if self.long_rationale == "drop":
            return [], []
        return thought[excess:], answer[max(excess - len(thought), 0) :]

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        """Tokens of each text; one that spells `[SEP]` has those of a bracket and of letters."""
        return self.tokenizer(
            texts, add_special_tokens=False, split_special_tokens=True, verbose=False
        )["input_ids"]


def two_buckets(lengths: Sequence[int]) -> list[list[int]]:
    """Row numbers in one or two groups, short and long, with the least padding in all.

    >>> two_buckets([40, 9, 41, 8])
    [[3, 1], [0, 2]]
    >>> two_buckets([5, 5])
    [[0, 1]]
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    ordered = [lengths[i] for i in order]

    # Tokens with padding, for each number of short rows; the last one is a single bucket.
    costs = [
        cut * ordered[cut - 1] + (len(order) - cut) * ordered[-1]
        for cut in range(1, len(order) + 1)
    ]

    cut = 1 + min(range(len(order)), key=costs.__getitem__)

    # Two passes cost more than one: split only where it saves a tenth.
    if costs[cut - 1] > 0.9 * costs[-1]:
        return [order]
    return [order[:cut], order[cut:]]


def pad(lists: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Lists as the rows of one tensor, zeros behind the shorter ones."""
    return pad_sequence([torch.tensor(x) for x in lists], batch_first=True).to(device)
