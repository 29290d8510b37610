"""The seam of backbones that write: direct vector, thought and reasoned vector in one sequence.

Shapes: B sides, D embedding width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmemb.backbones.base import Backbone
from mmemb.llm.decoding.sampling import Sampling
from mmemb.records.inputs import Side
from mmemb.records.rationales import GREEDY, Rationale

Decide = Callable[[Sequence[int], Tensor], Sequence[str]]
"""Row numbers and their direct vectors -> the depth of each row."""


class Thoughts(NamedTuple):
    """What one pass over B sides gives.

    Attributes:
        direct_BD: h_d, at the end of the prompt.
        vectors_BD: h_r, at the end of the rationale, where a row reasoned and something was said;
            h_d elsewhere.
        rationales: what was written; None where a row did not reason.
    """

    direct_BD: Tensor
    vectors_BD: Tensor
    rationales: tuple[Rationale | None, ...]


class GenerativeBackbone(Backbone, ABC):
    """A backbone that is a language model: `h_d` stands at the end of the prompt, which is the same
    at every depth, and `h_r` at the end of the rationale behind it (METHOD 6). `encode_paths` reads
    both in one forward pass, with the rationale's likelihood."""

    @abstractmethod
    def think_and_embed(
        self,
        sides: Sequence[Side],
        decide: Decide,
        sampling: Sampling,
        seeds: Sequence[int] | None = None,
        longest: Mapping[str, int] | None = None,
    ) -> Thoughts:
        """Reads every prompt once, asks for a depth, and goes on where reasoning was asked for.

        Args:
            sides: B sides.
            decide: is called with the direct vectors of some rows at a time.
            sampling: how long and how rationales are drawn.
            seeds: one per side; None = greedy draws.
            longest: depth -> most tokens of a rationale, where `sampling` allows more.
        """

    @torch.inference_mode()
    def generate(
        self, sides: Sequence[Side], depth: str, sampling: Sampling, seed: int = GREEDY
    ) -> tuple[Rationale | None, ...]:
        """A rationale about every side."""
        seeds = [seed] * len(sides)
        return self.think_and_embed(
            sides, lambda rows, _: [depth] * len(rows), sampling, seeds
        ).rationales


def replies_nll(
    head: nn.Module, state_BLH: Tensor, end_B: Tensor, replies: Sequence[Sequence[int]]
) -> Tensor:
    """Negative log-likelihood of replies, summed over each one's tokens: (B,) float32.

    Logits are made for the replies' places alone, since a vocabulary is wide.

    Args:
        head: states to logits.
        state_BLH: states of prompts with their replies.
        end_B: place of each row's last token.
        replies: B token sequences at the ends of the rows; one may be empty.
    """
    nll = []
    for state_LH, end, reply in zip(state_BLH, end_B.tolist(), replies, strict=True):
        said_T = torch.tensor(reply, device=state_LH.device).long()
        logits_TV = head(state_LH[end - len(reply) : end]).float()
        nll.append(functional.cross_entropy(logits_TV, said_T, reduction="sum"))
    return torch.stack(nll)
