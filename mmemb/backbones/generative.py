"""The seam of backbones that write: direct vector, thought and reasoned vector in one sequence.

docs/method.md section 6. Shapes: B sides, D embedding width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmemb.backbones.base import Backbone
from mmemb.llm.decoding.cached_rows import CachedRows
from mmemb.llm.decoding.sampling import Sampling
from mmemb.records.inputs import Side
from mmemb.records.rationales import GREEDY, Rationale


@final
@dataclass(frozen=True, slots=True)
class DirectVectors:
    """B sides, embedded without a rationale.

    Attributes:
        sides: B sides.
        vectors_BD: h_d, unit vectors.
        prompts: the caches behind the prompts, from which a rationale goes on any number of times:
            row numbers, and the cached rows of these, for prompts that were read together. Empty if
            the vectors were made without.
    """

    sides: tuple[Side, ...]
    vectors_BD: Tensor
    prompts: tuple[tuple[tuple[int, ...], CachedRows], ...] = ()


class Thoughts(NamedTuple):
    """Rationales behind B prompts, with their vectors.

    Attributes:
        vectors_BD: h_r, at the end of the rationale, where a row has one that is not empty; h_d
            elsewhere.
        rationales: the rationales that were written; None where a row did not reason.
    """

    vectors_BD: Tensor
    rationales: tuple[Rationale | None, ...]


class GenerativeBackbone(Backbone, ABC):
    """A backbone that is a language model: `h_d` stands at the end of the prompt, which is the same
    at every depth, and `h_r` at the end of the rationale behind it. `encode_paths` reads
    both in one forward pass, with the rationale's likelihood."""

    @abstractmethod
    def read_prompts(self, sides: Sequence[Side], sampling: Sampling) -> DirectVectors:
        """Reads every prompt once, and keeps what a rationale needs to go on from it.

        Args:
            sides: B sides. The caches of all of them are kept, so B is bound by the memory.
            sampling: how long rationales may become.
        """

    @abstractmethod
    def think(
        self,
        direct: DirectVectors,
        depths: Sequence[str],
        sampling: Sampling,
        seeds: Sequence[int] | None = None,
        longest: Mapping[str, int] | None = None,
    ) -> Thoughts:
        """Goes on from prompts where reasoning is asked for; the prompts stay as they are.

        Args:
            direct: what `read_prompts` gave, with the same sampling.
            depths: name of the depth of each side; `direct` writes nothing.
            sampling: how long and how rationales are drawn.
            seeds: one per side; None = greedy draws.
            longest: depth -> most tokens of a rationale, where `sampling` allows more.
        """

    @torch.inference_mode()
    def generate(
        self, sides: Sequence[Side], depth: str, sampling: Sampling, seed: int = GREEDY
    ) -> tuple[Rationale | None, ...]:
        """Writes a rationale about every side."""
        direct, num = self.read_prompts(sides, sampling), len(sides)
        return self.think(direct, [depth] * num, sampling, [seed] * num).rationales


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

        # The state one place before a token predicts it, so the reply's own last state is left out.
        logits_TV = head(state_LH[end - len(reply) : end]).float()
        nll.append(functional.cross_entropy(logits_TV, said_T, reduction="sum"))
    return torch.stack(nll)
