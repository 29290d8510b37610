"""The planted world of METHOD 10: synthetic pairs whose rationales are known to help or not.

It answers whether a contrast finds the helpful ones and whether a gate finds its optimum, with no
model in between. Shapes: B pairs, N negatives, K rationales, D width, S state, A depths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from mmemb.batches import UtilityBatch
from mmemb.counterfactual import keep, keep_threshold
from mmemb.gate_inputs import GateInputs

HELPFUL, USELESS, FALSE_HELPFUL, LEAKING = range(4)
"""What a rationale does: moves the query to the target alone; nowhere; to the target and, more so,
its look-alikes; to the target because a two-sided worker copied it."""

KIND_SHARES = (0.3, 0.4, 0.2, 0.1)

_NUM_HARD = 5
_STEP = 0.3


@final
@dataclass(frozen=True, slots=True)
class PlantedWorld:
    """Unit vectors of pairs and what their rationales do to the query.

    Attributes:
        query_BD: h_d(q); between near its target and nowhere: pairs differ in difficulty.
        target_BD: the true targets.
        negative_BND: the first few are look-alikes of the target, the rest is random.
        reasoned_BKD: h_r(q, r).
        kind_BK: `HELPFUL`, `USELESS`, `FALSE_HELPFUL` or `LEAKING`.
    """

    query_BD: Tensor
    target_BD: Tensor
    negative_BND: Tensor
    reasoned_BKD: Tensor
    kind_BK: Tensor

    @property
    def helpful(self) -> Tensor:
        """(B, K): the planted truth."""
        return self.kind_BK == HELPFUL

    @property
    def names_target(self) -> Tensor:
        """(B, K) leaks: two-sided ones are dropped by provenance, before any contrast is read."""
        return self.kind_BK == LEAKING

    def score(self, temperature: float = 0.2) -> Tensor:
        """(B, 1 + N, 1 + K) s / tau, laid out as by `PairEvaluator.score`.

        The colder, the more `gain` saturates on easy pairs (no log-probability passes 0): below
        0.1 it is hardly better than `raw`, while `margin` does not care.
        """
        candidate_BCD = torch.cat([self.target_BD[:, None], self.negative_BND], 1)
        reader_BRD = torch.cat([self.query_BD[:, None], self.reasoned_BKD], 1)
        return candidate_BCD @ reader_BRD.mT / temperature


def planted_world(
    num_pairs: int = 2000,
    num_negatives: int = 15,
    num_rationales: int = 4,
    dim: int = 32,
    *,
    generator: torch.Generator,
) -> PlantedWorld:
    """Draws a planted world.

    Args:
        num_pairs: B.
        num_negatives: N, at least 5 (the look-alikes).
        num_rationales: K.
        dim: D.
        generator: the only source of randomness.
    """

    def noise(*shape: int) -> Tensor:
        return nn.functional.normalize(torch.randn(*shape, dim, generator=generator), dim=-1)

    family_BD = noise(num_pairs)
    target_BD = nn.functional.normalize(family_BD + noise(num_pairs), dim=-1)
    alike_BHD = nn.functional.normalize(family_BD[:, None] + noise(num_pairs, _NUM_HARD), dim=-1)
    negative_BND = torch.cat([alike_BHD, noise(num_pairs, num_negatives - _NUM_HARD)], 1)
    ease_B1 = 1.5 * torch.rand(num_pairs, 1, generator=generator)
    query_BD = nn.functional.normalize(ease_B1 * target_BD + noise(num_pairs), dim=-1)
    shares = torch.tensor(KIND_SHARES).expand(num_pairs, -1)
    kind_BK = torch.multinomial(shares, num_rationales, replacement=True, generator=generator)
    own_BD = target_BD - alike_BHD.mean(1)
    moves_B4D = torch.stack(
        [own_BD, torch.zeros_like(own_BD), 2 * alike_BHD.mean(1), 2 * target_BD], 1
    )
    move_BKD = moves_B4D.gather(1, kind_BK[..., None].expand(-1, -1, dim))
    jitter_BKD = 0.2 * noise(num_pairs, num_rationales)
    reasoned_BKD = nn.functional.normalize(
        query_BD[:, None] + _STEP * move_BKD + jitter_BKD, dim=-1
    )
    return PlantedWorld(query_BD, target_BD, negative_BND, reasoned_BKD, kind_BK)


def kept_hits(contrast_BK: Tensor, helpful_BK: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Helpful kept and all kept rationales per pair, (B,) each, at a keep rate of `share`.

    Contrasts are compared at one keep rate (METHOD 5), so the difference of hits per pair is a
    paired statistic for the bootstrap.
    """
    kept_BK = keep(contrast_BK, keep_threshold(contrast_BK, share))
    return (kept_BK & helpful_BK).sum(1), kept_BK.sum(1)


def keep_precision(contrast_BK: Tensor, helpful_BK: Tensor, share: float) -> float:
    """Share of helpful ones among the kept, at a keep rate of `share`.

    Args:
        contrast_BK: a contrast; NaN leaves a rationale out (dropped leaks, padding).
        helpful_BK: the planted truth.
        share: of the rationales to keep.

    >>> keep_precision(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[True, False, False]]), 2 / 3)
    0.5
    """
    hits_B, kept_B = kept_hits(contrast_BK, helpful_BK, share)
    return hits_B.sum().item() / max(1, kept_B.sum().item())


def planted_gate(
    num_queries: int = 2000, dim: int = 8, *, generator: torch.Generator
) -> UtilityBatch:
    """Queries whose state tells exactly how much reasoning gains: a linear function of it.

    Reasoning costs 40 tokens; at a price it pays where the gain is above 40 * price.
    """
    state_BS = torch.randn(num_queries, dim, generator=generator)
    gain_B = state_BS @ torch.linspace(-1, 1, dim)
    direct_B = -1 - torch.rand(num_queries, generator=generator)
    return UtilityBatch(
        keys=tuple(f"planted-{i}" for i in range(num_queries)),
        metas=tuple({"task": "planted", "concept": str(i)} for i in range(num_queries)),
        inputs=GateInputs.of_embedding(state_BS),
        utility_BA=torch.stack([direct_B, direct_B + gain_B], 1),
        cost_BA=torch.tensor([0.0, 40.0]).expand(num_queries, -1),
        eligible_B=torch.ones(num_queries, dtype=torch.bool),
    )


def regret(logit_BA: Tensor, reward_BA: Tensor) -> float:
    """What the policy's choice loses against the best depth of every query, on average.

    >>> regret(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
    2.0
    """
    chosen_B = reward_BA.gather(1, logit_BA.argmax(1, keepdim=True))[:, 0]
    return (reward_BA.amax(1) - chosen_B).mean().item()
