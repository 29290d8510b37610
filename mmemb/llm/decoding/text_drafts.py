"""Decoding of many drafts at once: those that have ended make room for waiting ones.

Knows no particular model: a `Decoder` feeds tokens and returns logits. Shapes: U prompts, R rows
(drafts under way), V vocabulary, T new tokens, H width of the model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor

from mmemb.llm.decoding.sampling import Draw, Sampling, choose_tokens, row_noise
from mmemb.records.rationales import GREEDY

_COMPACT_BELOW = 0.85  # copying the cache costs about a sixth of a step, so not at every step
_REFILL_BELOW = 0.8  # a step of 2 rows costs a third of one of 128


class Decoder(ABC):
    """Feeds a causal language model step by step.

    Attributes:
        can_admit: whether rows may join those that are under way.
        states_UH: the hidden states at the ends of the prompts read last, if they were asked for.
    """

    can_admit = False
    states_UH: Tensor | None = None

    @abstractmethod
    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Reads U prompts anew; returns logits_UV after each one's last token."""

    @abstractmethod
    def select(self, rows_R: Tensor) -> None:
        """Continues with these of the present rows, in this order; a row may come repeatedly."""

    @abstractmethod
    def step(self, tokens_R: Tensor) -> Tensor:
        """Feeds one token per row; returns logits_RV."""

    def begin(self, prompts: Sequence[Sequence[int]], rows_R: Tensor) -> Tensor:
        """Reads U prompts anew and continues `rows_R` of them; returns their logits_RV."""
        logits_UV = self.start(prompts)
        self.select(rows_R)
        return logits_UV[rows_R.to(logits_UV.device)]

    def admit(self, prompts: Sequence[Sequence[int]], rows_R: Tensor) -> Tensor:
        """`begin` whose rows follow the present ones; only where `can_admit`."""
        raise NotImplementedError(f"{type(self).__name__} admits no rows to those under way")


@final
class _Slots:
    """The drafts under way: row r of the decoder continues draw `live[r]`.

    Args:
        decoder: the model.
        prompts: U token sequences.
        row_prompts: which prompt each draw continues.
        most: rows under way together.
    """

    def __init__(
        self,
        decoder: Decoder,
        prompts: Sequence[Sequence[int]],
        row_prompts: Sequence[int],
        most: int,
    ) -> None:
        self._decoder, self._prompts, self._row_prompts = decoder, prompts, row_prompts
        self._most = most
        # Neighbours are of like length: little is padded, and a prompt's draws stay together.
        numbers = range(len(row_prompts))
        order = sorted(numbers, key=lambda n: (-len(prompts[row_prompts[n]]), row_prompts[n]))
        self.waiting, self.live = deque(order), list[int]()
        self.logits_RV = torch.zeros(0, 0)
        self.states: dict[int, Tensor] = {}

    def refill(self) -> None:
        """Reads the prompts of waiting draws if enough rows are free."""
        if not self._wants(len(self.live)):
            return
        free = min(len(self.waiting), self._most - len(self.live))
        fresh = [self._row_prompts[n] for n in list(self.waiting)[:free]]
        numbers = list(dict.fromkeys(fresh))
        rows_R = torch.tensor([numbers.index(number) for number in fresh])
        read = self._decoder.admit if self.live else self._decoder.begin
        logits_RV = read([self._prompts[number] for number in numbers], rows_R)
        if self._decoder.states_UH is not None:
            self.states |= zip(numbers, self._decoder.states_UH, strict=True)
        self.logits_RV = torch.cat([self.logits_RV, logits_RV]) if self.live else logits_RV
        self.live += [self.waiting.popleft() for _ in fresh]

    def advance(self, tokens_R: Tensor, open_rows: Sequence[int]) -> None:
        """Feeds a step's tokens; rows that have ended leave where that pays."""
        if self._wants(len(open_rows)) or len(open_rows) < _COMPACT_BELOW * len(self.live):
            self.live = [self.live[row] for row in open_rows]
            tokens_R = tokens_R[open_rows]
            if self.live:
                self._decoder.select(torch.tensor(open_rows))
        if self.live:
            self.logits_RV = self._decoder.step(tokens_R)

    def _wants(self, num_live: int) -> bool:
        room = num_live <= _REFILL_BELOW * self._most if self._decoder.can_admit else num_live == 0
        return bool(self.waiting) and room


@torch.inference_mode()
def decode(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    row_prompts: Sequence[int],
    seeds: Sequence[int],
    sampling: Sampling,
    is_complete: Callable[[list[int]], bool],
    slots: int = 96,
) -> tuple[list[Draw], dict[int, Tensor]]:
    """Makes one draw per seed, at a cost that follows their real lengths.

    Args:
        decoder: the model.
        prompts: U token sequences; draws that start together share the reading of theirs.
        row_prompts: for each draw an index into `prompts`.
        seeds: one per draw, `GREEDY` for the greedy one.
        sampling: settings of the sampled draws.
        is_complete: tells from a draw's tokens whether it has ended.
        slots: most draws under way together.

    Returns:
        The draws, and by number of the prompt the state (H,) at its end if the decoder notes it.
    """
    draws, rows = [Draw() for _ in seeds], _Slots(decoder, prompts, row_prompts, slots)
    sampled = torch.tensor([seed != GREEDY for seed in seeds])
    noise = [row_noise(seed, sampling.max_new_tokens) for seed in seeds]
    while rows.waiting or rows.live:
        rows.refill()
        now = [draws[n] for n in rows.live]
        last = sampling.max_new_tokens - 1  # of one that has ended and not left, nothing is used
        noise_R = torch.stack(
            [noise[n][min(len(draw.tokens), last)] for n, draw in zip(rows.live, now, strict=True)]
        )
        tokens_R, log_probs_R = choose_tokens(rows.logits_RV, noise_R, sampled[rows.live], sampling)
        rows.advance(tokens_R, _record(now, tokens_R, log_probs_R, sampling, is_complete))
    return draws, rows.states


def _record(
    draws: Sequence[Draw],
    tokens_R: Tensor,
    log_probs_R: Tensor,
    sampling: Sampling,
    is_complete: Callable[[list[int]], bool],
) -> list[int]:
    """Appends a step to the open draws; returns the rows that are still open."""
    steps = zip(draws, tokens_R.tolist(), log_probs_R.tolist(), strict=True)
    for draw, token, log_prob in steps:
        if draw.is_open(sampling):
            draw.tokens.append(token)
            draw.log_probability += log_prob
            draw.complete = is_complete(draw.tokens)
    return [row for row, draw in enumerate(draws) if draw.is_open(sampling)]
