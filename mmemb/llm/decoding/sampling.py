"""Draws of one token for each of many rows, greedily or by a seed of its own.

Shapes: R rows (draws), V vocabulary, K likeliest tokens, T new tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmemb.records.rationales import GREEDY


@dataclass(frozen=True, slots=True)
class Sampling:
    """Settings of draws: temperature, then the `top_k` likeliest tokens, then their nucleus."""

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
    logits_RV = logits_RV.float()
    top = logits_RV.topk(min(sampling.top_k, logits_RV.shape[1]), dim=1)
    total_R1 = logits_RV.logsumexp(1, True).cpu().double()
    top_RK, ids_RK = top.values.cpu(), top.indices.cpu()  # a vocabulary stays where it is

    # The nucleus holds a token if those before it have not reached `top_p` yet.
    probs_RK = (top_RK.double() / sampling.temperature).softmax(dim=1)
    below_RK = probs_RK.cumsum(dim=1) - probs_RK
    probs_RK = probs_RK.masked_fill(below_RK >= sampling.top_p, 0.0)

    # Without noise the first token is taken, the likeliest.
    cumulative_RK = probs_RK.cumsum(dim=1)
    threshold_R1 = (noise_R * sampled_R)[:, None] * cumulative_RK[:, -1:]
    rank_R1 = (cumulative_RK <= threshold_R1).sum(dim=1, keepdim=True) * sampled_R[:, None]
    rank_R1 = rank_R1.clamp(max=int(ids_RK.shape[1]) - 1)

    log_probs_R1 = top_RK.gather(1, rank_R1).double() - total_R1
    return ids_RK.gather(1, rank_R1)[:, 0], log_probs_R1[:, 0]


def row_noise(seed: int, length: int) -> Tensor:
    """A row's uniform numbers; a generator of its own keeps rows independent of each other."""
    if seed == GREEDY:
        return torch.zeros(length, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(length, generator=generator, dtype=torch.float64)


def check_finite(values: Tensor, model: object, about: str) -> None:
    """Refuses NaN and infinities.

    Args:
        values: scores or log-probabilities, of any shape.
        model: of transformers, or its folder or hub id.
        about: the question that the model was asked.

    Raises:
        ValueError: some value is not finite.
    """
    if not bool(values.isfinite().all()):
        name = getattr(model, "name_or_path", model)
        raise ValueError(
            f"The model {name} gives NaN or infinity for {about}: its weights are broken, or its "
            "dtype is too narrow for them. Set dtype: float32 or bfloat16, or take another "
            "checkpoint."
        )
