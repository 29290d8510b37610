"""Greedy and sampled decoding of many rows at once, with a seed of its own for every row.

Knows no particular model: a `Decoder` feeds tokens and returns logits. Shapes: U prompts, R rows
(draws), V vocabulary, T new tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from mmemb.records import GREEDY

_COMPACT_BELOW = 0.85  # copying the cache costs about a sixth of a step, so not at every step


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
    """Feeds a causal language model step by step."""

    @abstractmethod
    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Reads U prompts anew; returns logits_UV after each one's last token."""

    @abstractmethod
    def select(self, rows_R: Tensor) -> None:
        """Continues with these of the present rows, in this order; a row may come repeatedly."""

    @abstractmethod
    def step(self, tokens_R: Tensor) -> Tensor:
        """Feeds one token per row; returns logits_RV."""


@torch.inference_mode()
def decode(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    row_prompts: Sequence[int],
    seeds: Sequence[int],
    sampling: Sampling,
    is_complete: Callable[[list[int]], bool],
) -> list[Draw]:
    """Draws R sequences; finished rows leave the batch, so that cost follows real lengths.

    Args:
        decoder: the model.
        prompts: U token sequences; each is read once, however many rows continue it.
        row_prompts: R indices into `prompts`.
        seeds: R seeds, `GREEDY` for the greedy draw.
        sampling: settings of the sampled rows.
        is_complete: tells from a row's tokens whether it has ended.
    """
    draws = [Draw() for _ in seeds]
    sampled_R = torch.tensor([seed != GREEDY for seed in seeds])
    noise_RT = torch.stack([_noise(seed, sampling.max_new_tokens) for seed in seeds])
    live = list(range(len(seeds)))  # the draw that each row of the decoder belongs to
    logits = decoder.start(prompts)
    decoder.select(torch.tensor(row_prompts))
    logits = logits[torch.tensor(row_prompts)]
    for t in range(sampling.max_new_tokens):
        tokens, log_probs = choose_tokens(logits, noise_RT[live, t], sampled_R[live], sampling)
        open_rows = _record(draws, live, tokens, log_probs, is_complete)
        if not open_rows or t + 1 == sampling.max_new_tokens:
            break
        if len(open_rows) < _COMPACT_BELOW * len(live):
            decoder.select(torch.tensor(open_rows))
            tokens, live = tokens[open_rows], [live[row] for row in open_rows]
        logits = decoder.step(tokens)
    return draws


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


def _record(
    draws: list[Draw],
    live: list[int],
    tokens_R: Tensor,
    log_probs_R: Tensor,
    is_complete: Callable[[list[int]], bool],
) -> list[int]:
    """Appends a step to the open draws; returns the rows that are still open."""
    open_rows = []
    for row, (token, log_prob) in enumerate(
        zip(tokens_R.tolist(), log_probs_R.tolist(), strict=True)
    ):
        draw = draws[live[row]]
        if draw.complete:  # finished earlier and not compacted yet
            continue
        draw.tokens.append(token)
        draw.log_probability += log_prob
        draw.complete = is_complete(draw.tokens)
        if not draw.complete:
            open_rows.append(row)
    return open_rows
