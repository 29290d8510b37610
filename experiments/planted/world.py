"""The planted world: synthetic pairs whose rationales are known to help or not.

Source: docs/method.md section 10. No model stands in between: what a contrast finds here is all
that it can find. Shapes: B pairs, C concepts or candidates, H look-alikes, N negatives, K
rationales, R readings, J donors, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmemb.selection.contrasts import log_softmax_target
from mmemb.selection.keep_rule import keep, keep_threshold

HELPFUL, USELESS, FALSE_HELPFUL, LEAKING = range(4)
"""Kinds of rationales: one moves the query to the target alone; nowhere; to the target and, more
so, its look-alikes; to the target because a two-sided writer copied it."""

KIND_SHARES = (0.3, 0.4, 0.2, 0.1)

_NUM_HARD = 5
_STEP = 0.3
_JITTER = 0.2


@final
@dataclass(frozen=True, slots=True)
class PlantedWorld:
    """Unit vectors of pairs and what their rationales do to the query.

    Attributes:
        query_BD: h_d(q); between near its target and nowhere: pairs differ in difficulty.
        target_BD: the true targets; pairs of one concept share theirs, and its look-alikes.
        negative_BND: the first few are look-alikes of the target, the rest is random.
        move_BKD: what a rationale adds to a query's vector, in any embedder.
        kind_BK: `HELPFUL`, `USELESS`, `FALSE_HELPFUL` or `LEAKING`.
        concept_B: which concept a pair asks about: the clusters of a bootstrap.
    """

    query_BD: Tensor
    target_BD: Tensor
    negative_BND: Tensor
    move_BKD: Tensor
    kind_BK: Tensor
    concept_B: Tensor

    @property
    def helpful(self) -> Tensor:
        """(B, K) True for helpful rationales: the planted truth."""
        return self.kind_BK == HELPFUL

    @property
    def names_target(self) -> Tensor:
        """(B, K) True for leaks: provenance drops them before any contrast is read."""
        return self.kind_BK == LEAKING

    def score(self, temperature: float = 0.2) -> Tensor:
        """Returns (B, 1 + N, 1 + K) s / tau, laid out as by `PairJudge.score`.

        The colder, the more `gain` saturates on easy pairs (no log-probability passes 0): below
        0.1 it is hardly better than `raw`, while `margin` does not care.
        """
        direct_B1D = self.query_BD[:, None]
        return self._score(torch.cat([direct_B1D, self._read(self.move_BKD)], 1), temperature)

    def placebo(
        self, num_placebos: int, generator: torch.Generator, temperature: float = 0.2
    ) -> Tensor:
        """Returns m(q, t, .) of other concepts' rationales, (B, K, J): one draw of donors a pair.

        NaN where the drawn pair asks about the same concept or its rationale is a leak, which
        provenance has dropped there as well.
        """
        num_pairs, num_rationales = self.kind_BK.shape

        # One draw of donors serves all rationales of a pair, so that they are ranked among the
        # same.
        shape = (num_pairs, num_placebos)

        donor_BJ = torch.randint(num_pairs, shape, generator=generator)
        slot_BJ = torch.randint(num_rationales, shape, generator=generator)

        placebo_BJD = self._read(self.move_BKD[donor_BJ, slot_BJ])
        placebo_BJ = log_softmax_target(self._score(placebo_BJD, temperature))

        # A rationale about the same concept is no placebo, as it may help.
        same_BJ = self.concept_B[donor_BJ] == self.concept_B[:, None]
        placebo_BJ[same_BJ | self.names_target[donor_BJ, slot_BJ]] = torch.nan
        return placebo_BJ[:, None].expand(-1, num_rationales, -1)

    def _read(self, move_BRD: Tensor) -> Tensor:
        return normalize(self.query_BD[:, None] + move_BRD, dim=-1)

    def _score(self, reading_BRD: Tensor, temperature: float) -> Tensor:
        candidate_BCD = torch.cat([self.target_BD[:, None], self.negative_BND], 1)
        return candidate_BCD @ reading_BRD.mT / temperature


def planted_world(
    num_pairs: int = 2000,
    num_negatives: int = 15,
    num_rationales: int = 4,
    dim: int = 32,
    *,
    num_concepts: int | None = None,
    shares: Sequence[float] = KIND_SHARES,
    generator: torch.Generator,
) -> PlantedWorld:
    """Draws a planted world.

    Args:
        num_pairs: B.
        num_negatives: N, at least 5 (the look-alikes).
        num_rationales: K.
        dim: D.
        num_concepts: pairs draw their concept among so many, so concepts hold unequal numbers of
            pairs; None gives every pair a concept of its own.
        shares: of helpful, useless, false-helpful and leaking rationales.
        generator: the only source of randomness.
    """
    _check(num_pairs, num_negatives, num_concepts, shares)

    def noise(*shape: int) -> Tensor:
        return normalize(torch.randn(*shape, dim, generator=generator), dim=-1)

    concept_B = torch.arange(num_pairs)
    if num_concepts is not None:
        concept_B = torch.randint(num_concepts, (num_pairs,), generator=generator)

    # Target and look-alikes share a family, so a look-alike is nearer than a random negative.
    family_CD = noise(num_concepts or num_pairs)
    target_BD = normalize(family_CD + noise(len(family_CD)), dim=-1)[concept_B]
    alike_CHD = normalize(family_CD[:, None] + noise(len(family_CD), _NUM_HARD), dim=-1)
    alike_BHD = alike_CHD[concept_B]

    negative_BND = torch.cat([alike_BHD, noise(num_pairs, num_negatives - _NUM_HARD)], 1)

    # From 0, a query that points nowhere, to 1.5, one near its target.
    ease_B1 = 1.5 * torch.rand(num_pairs, 1, generator=generator)
    query_BD = normalize(ease_B1 * target_BD + noise(num_pairs), dim=-1)

    share_B4 = torch.tensor(shares, dtype=torch.float).expand(num_pairs, -1)
    kind_BK = torch.multinomial(share_B4, num_rationales, replacement=True, generator=generator)

    move_BKD = _STEP * _moves(target_BD, alike_BHD, kind_BK)
    move_BKD = move_BKD + _JITTER * noise(num_pairs, num_rationales)

    return PlantedWorld(query_BD, target_BD, negative_BND, move_BKD, kind_BK, concept_B)


def _moves(target_BD: Tensor, alike_BHD: Tensor, kind_BK: Tensor) -> Tensor:
    """Returns the direction of a rationale of each kind, (B, K, D)."""
    alike_BD = alike_BHD.mean(1)

    # Away from the look-alikes, nowhere, to both with the look-alikes nearer, to the target.
    of_kind = {
        HELPFUL: target_BD - alike_BD,
        USELESS: torch.zeros_like(target_BD),
        FALSE_HELPFUL: 2 * alike_BD,
        LEAKING: 2 * target_BD,
    }

    move_B4D = torch.stack([of_kind[kind] for kind in sorted(of_kind)], 1)
    return move_B4D.gather(1, kind_BK[..., None].expand(-1, -1, move_B4D.shape[-1]))


def _check(
    num_pairs: int, num_negatives: int, num_concepts: int | None, shares: Sequence[float]
) -> None:
    if (
        num_pairs < 1
        or num_negatives < _NUM_HARD
        or (num_concepts is not None and num_concepts < 1)
    ):
        raise ValueError(
            f"a planted world of {num_pairs} pairs, {num_concepts} concepts and {num_negatives} "
            f"negatives: expected at least 1 pair, 1 concept and {_NUM_HARD} negatives"
        )

    if len(shares) != 4 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(
            f"shares {tuple(shares)}: expected four that sum to 1, of helpful, useless, "
            "false-helpful and leaking rationales"
        )


def kept_hits(contrast_BK: Tensor, helpful_BK: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Counts helpful kept and all kept rationales per pair, (B,) each, at a keep rate of `share`.

    Contrasts are compared at one keep rate, so the difference of hits per pair is a
    paired statistic for the bootstrap.
    """
    kept_BK = keep(contrast_BK, keep_threshold(contrast_BK, share))
    return (kept_BK & helpful_BK).sum(1), kept_BK.sum(1)


def keep_precision(contrast_BK: Tensor, helpful_BK: Tensor, share: float) -> float:
    """Returns the share of helpful ones among the kept, at a keep rate of `share`.

    Args:
        contrast_BK: a contrast; NaN leaves a rationale out (dropped leaks, padding).
        helpful_BK: the planted truth.
        share: of the rationales to keep.

    >>> keep_precision(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[True, False, False]]), 2 / 3)
    0.5
    """
    hits_B, kept_B = kept_hits(contrast_BK, helpful_BK, share)
    return hits_B.sum().item() / max(1, kept_B.sum().item())
