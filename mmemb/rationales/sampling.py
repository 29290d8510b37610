"""Greedy and sampled decoding of many rows at once, with a seed of its own for every row.

Knows no particular model: a `Decoder` feeds tokens and returns logits. Shapes: U prompts, R rows
(draws), V vocabulary, T new tokens, H width of the model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from mmemb.records import GREEDY

_COMPACT_BELOW = 0.85  # copying the cache costs about a sixth of a step, so not at every step
_REFILL_BELOW = 0.8  # a step of few rows costs nearly as much as one of many


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn: temperature, then the `top_k` likeliest, then the nucleus of them."""

    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.top_k < 1:
            raise ValueError(f"max_new_tokens and top_k must be at least 1: {self}.")
        if self.temperature <= 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"temperature must be above 0 and top_p in (0, 1]: {self}.")

    def describe(self, seed: int) -> str:
        """The `decoding` field of a rationale."""
        if seed == GREEDY:
            return f"greedy n={self.max_new_tokens}"
        kind = f"t={self.temperature:g} p={self.top_p:g} k={self.top_k}"
        return f"{kind} n={self.max_new_tokens}"


@final
@dataclass(slots=True)
class Draw:
    """One generated sequence, its end token included, and its log-probability at temperature 1."""

    tokens: list[int] = field(default_factory=list)
    log_probability: float = 0.0
    complete: bool = False


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
    """Draws R sequences; finished rows make room for waiting ones: cost follows real lengths.

    Args:
        decoder: the model.
        prompts: U token sequences; one is read once, however many rows of a batch continue it.
        row_prompts: R indices into `prompts`.
        seeds: R seeds, `GREEDY` for the greedy draw.
        sampling: settings of the sampled rows.
        is_complete: tells from a row's tokens whether it has ended.
        slots: most rows under way together.

    Returns:
        The draws, and by number of the prompt the state (H,) at its end if the decoder notes it.
    """
    draws, states = [Draw() for _ in seeds], dict[int, Tensor]()
    if not draws:
        return draws, states
    sampled_R = torch.tensor([seed != GREEDY for seed in seeds])
    noise_RT = torch.stack([_noise(seed, sampling.max_new_tokens) for seed in seeds])
    # Neighbours are of like length, so that little is padded, and draws of a prompt stay together.
    order = sorted(range(len(seeds)), key=lambda r: (-len(prompts[row_prompts[r]]), row_prompts[r]))
    waiting, live = deque(order), list[int]()  # live: the draw that each row of the decoder makes

    def admit(logits_RV: Tensor | None) -> Tensor:
        fresh = [waiting.popleft() for _ in range(min(len(waiting), slots - len(live)))]
        numbers = list(dict.fromkeys(row_prompts[row] for row in fresh))
        rows_R = torch.tensor([numbers.index(row_prompts[row]) for row in fresh])
        read = decoder.admit if live else decoder.begin
        new_RV = read([prompts[number] for number in numbers], rows_R)
        if decoder.states_UH is not None:
            states.update(zip(numbers, decoder.states_UH, strict=True))
        joined_RV = torch.cat([logits_RV, new_RV]) if live else new_RV
        live.extend(fresh)
        return joined_RV

    logits_RV = None
    while waiting or live:
        if waiting and _has_room(len(live), slots, decoder):
            logits_RV = admit(logits_RV)
        time_R = [min(len(draws[row].tokens), noise_RT.shape[1] - 1) for row in live]
        tokens_R, log_probs_R = choose_tokens(
            logits_RV, noise_RT[live, time_R], sampled_R[live], sampling
        )
        open_rows = _record(draws, live, tokens_R, log_probs_R, sampling, is_complete)
        refill = waiting and _has_room(len(open_rows), slots, decoder)
        if refill or len(open_rows) < _COMPACT_BELOW * len(live):
            live = [live[place] for place in open_rows]
            tokens_R = tokens_R[open_rows]
            if live:
                decoder.select(torch.tensor(open_rows))
        logits_RV = decoder.step(tokens_R) if open_rows else None
    return draws, states


def choose_tokens(
    logits_RV: Tensor, noise_R: Tensor, sampled_R: Tensor, sampling: Sampling
) -> tuple[Tensor, Tensor]:
    """The next token of each row by inverse CDF, and its log-probability at temperature 1.

    Args:
        logits_RV: the model's logits.
        noise_R: uniform numbers in [0, 1), one per row; greedy rows ignore theirs.
        sampled_R: bool, False for greedy rows.
        sampling: temperature, top_k and top_p.

    Returns:
        tokens_R (int64) and log_probs_R (float64).
    """
    logits_RV = logits_RV.float().cpu()
    top_RK, ids_RK = logits_RV.topk(min(sampling.top_k, logits_RV.shape[1]), dim=1)
    probs_RK = (top_RK.double() / sampling.temperature).softmax(dim=1)
    below_RK = probs_RK.cumsum(dim=1) - probs_RK
    probs_RK = probs_RK.masked_fill(below_RK >= sampling.top_p, 0.0)
    cumulative_RK = probs_RK.cumsum(dim=1)
    threshold_R1 = (noise_R * sampled_R)[:, None] * cumulative_RK[:, -1:]
    rank_R1 = (cumulative_RK <= threshold_R1).sum(dim=1, keepdim=True) * sampled_R[:, None]
    rank_R1 = rank_R1.clamp(max=int(ids_RK.shape[1]) - 1)
    log_probs_R1 = top_RK.gather(1, rank_R1).double() - logits_RV.logsumexp(1, True).double()
    return ids_RK.gather(1, rank_R1)[:, 0], log_probs_R1[:, 0]


def _noise(seed: int, length: int) -> Tensor:
    """A row's uniform numbers; a generator of its own keeps rows independent of each other."""
    if seed == GREEDY:
        return torch.zeros(length, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(length, generator=generator, dtype=torch.float64)


def _has_room(num_live: int, slots: int, decoder: Decoder) -> bool:
    return num_live <= _REFILL_BELOW * slots if decoder.can_admit else num_live == 0


def _is_open(draw: Draw, sampling: Sampling) -> bool:
    return not draw.complete and len(draw.tokens) < sampling.max_new_tokens


def _record(
    draws: list[Draw],
    live: list[int],
    tokens_R: Tensor,
    log_probs_R: Tensor,
    sampling: Sampling,
    is_complete: Callable[[list[int]], bool],
) -> list[int]:
    """Appends a step to the open draws; returns the rows that are still open."""
    open_rows = []
    for row, (token, log_prob) in enumerate(
        zip(tokens_R.tolist(), log_probs_R.tolist(), strict=True)
    ):
        draw = draws[live[row]]
        if not _is_open(draw, sampling):  # finished earlier and not compacted yet
            continue
        draw.tokens.append(token)
        draw.log_probability += log_prob
        draw.complete = is_complete(draw.tokens)
        if _is_open(draw, sampling):
            open_rows.append(row)
    return open_rows
