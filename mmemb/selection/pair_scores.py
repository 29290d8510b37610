"""Scores of a judge about pairs, at tau 1: all that fitting, keeping and testing need.

See docs/method.md section 5. Shapes: B pairs, C candidates (the target first), K own
rationales, J placebo donors' ones, R = 1 + K columns (none first).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from mmemb.records.batches import PairRowBatch
from mmemb.records.rationales import Rationale
from mmemb.selection.contrasts import Kind, contrasts, pair_score
from mmemb.selection.judge import PairJudge
from mmemb.selection.placebos import comparable, placebo_donors


@final
@dataclass(frozen=True, slots=True)
class ScoredPair:
    """Scores of one pair: one row of the sidecar.

    Attributes:
        score_CR: (C, 1 + K + J) float32; columns are none, own rationales, placebos.
        comparable_KJ: bool, whether an own rationale may be ranked among a placebo.
    """

    score_CR: Tensor
    comparable_KJ: Tensor

    def members(self) -> dict[str, Any]:
        """Members of a sidecar's sample, unrounded."""
        return {"scores.npy": self.score_CR, "comparable.npy": self.comparable_KJ}


@final
@dataclass(frozen=True, slots=True)
class PairScores:
    """Scores of a batch of pairs.

    Attributes:
        own_BCR: columns are none, then own rationales; NaN: no such rationale, -inf: no such
            candidate.
        placebo_BCJ: the same of the placebos.
        comparable_BKJ: bool, whether an own rationale may be ranked among a placebo.
        kind: kind of a score.
    """

    own_BCR: Tensor
    placebo_BCJ: Tensor
    comparable_BKJ: Tensor
    kind: Kind

    @classmethod
    def stack(cls, rows: Sequence[ScoredPair], kind: Kind) -> PairScores:
        """Pads the scores of pairs to one batch."""
        own_counts, placebo_counts = zip(*(row.comparable_KJ.shape for row in rows), strict=True)
        most = max(len(row.score_CR) for row in rows)

        own_BCR = torch.full((len(rows), most, 1 + max(own_counts)), torch.nan)
        placebo_BCJ = torch.full((len(rows), most, max(placebo_counts)), torch.nan)
        comparable_BKJ = torch.zeros(
            len(rows), max(own_counts), max(placebo_counts), dtype=torch.bool
        )

        for number, row in enumerate(rows):
            num_own, num_placebos = row.comparable_KJ.shape
            columns = row.score_CR.split([1 + num_own, num_placebos], dim=1)

            # A column that exists is -inf, not NaN, where it lacks a candidate.
            for padded_CR, column_CR in zip((own_BCR, placebo_BCJ), columns, strict=True):
                padded_CR[number, :, : column_CR.shape[1]] = -torch.inf
                padded_CR[number, : len(column_CR), : column_CR.shape[1]] = column_CR
            comparable_BKJ[number, :num_own, :num_placebos] = row.comparable_KJ

        return cls(own_BCR, placebo_BCJ, comparable_BKJ, kind)

    def contrasts(self, tau: float, num_hard_negatives: int = 10) -> dict[str, Tensor]:
        """All contrasts of the own rationales, (B, K) each; see `mmemb.selection.contrasts`."""
        placebo_BJ = pair_score(self.placebo_BCJ / tau, self.kind)
        placebo_BKJ = placebo_BJ[:, None].masked_fill(~self.comparable_BKJ, torch.nan)

        # A last batch of one pair has no donors: the rank of its rationales is NaN.
        if not placebo_BKJ.shape[2]:
            placebo_BKJ = placebo_BKJ.new_full((*placebo_BKJ.shape[:2], 1), torch.nan)

        return contrasts(
            self.own_BCR / tau,
            kind=self.kind,
            num_hard_negatives=num_hard_negatives,
            placebo_BKJ=placebo_BKJ,
        )


@final
@dataclass(frozen=True, slots=True)
class SelectionScores:
    """All scores that a fit reads, by batches: calibration queries, and train pairs."""

    calibration: tuple[PairScores, ...]
    pairs: tuple[PairScores, ...]

    def to(self, *args: Any, **kwargs: Any) -> SelectionScores:
        """Returns itself: tau and eta are fitted on the host."""
        return self


@final
@dataclass(frozen=True, slots=True)
class JudgedPairs:
    """Consecutive pairs of one shard with their rationales and scores."""

    batch: PairRowBatch
    scores: PairScores

    @property
    def count_BK(self) -> Tensor:
        """Number of equal draws that each rationale stands for, float (B, K); 1 pads."""
        pools = self.batch.rationales
        count_BK = torch.ones(self.scores.own_BCR[:, 0, 1:].shape)

        for count_K, pool in zip(count_BK, pools, strict=True):
            count_K[: len(pool)] = torch.tensor([float(s.rationale.count) for s in pool])
        return count_BK

    def check_pools(self, folder: Path) -> None:
        """Raises ValueError if a pair has another number of rationales than was judged.

        Args:
            folder: folder of the rationales, for the error.
        """
        judged_B = (~self.scores.own_BCR[:, 0, 1:].isnan()).sum(1).tolist()
        for pair, pool, judged in zip(
            self.batch.pairs, self.batch.rationales, judged_B, strict=True
        ):
            if len(pool) != judged:
                raise ValueError(
                    f"Pair {pair.key} has {len(pool)} rationales in {folder}, but {judged} were "
                    "judged. Run `predict` of the selection again."
                )

    def to(self, *args: Any, **kwargs: Any) -> JudgedPairs:
        """Returns itself: rationales are chosen on the host."""
        return self


@torch.no_grad()
def judge_pairs(judge: PairJudge, batch: PairRowBatch, num_placebos: int) -> list[ScoredPair]:
    """Scores the pairs of a batch without, with their own, and with donors' rationales.

    Args:
        judge: the judge.
        batch: pairs with their candidates; donors are drawn among them.
        num_placebos: donors of each pair, writer and depth.

    Raises:
        ValueError: a score is not finite.
    """
    pools = [[scored.rationale for scored in pool] for pool in batch.rationales]
    donors = [placebo_donors(batch.pairs, pools, row, num_placebos) for row in range(len(pools))]

    # One call for both: a judge that shares what it has read reads a pair once.
    score_BCR = judge.score(
        [pair.query for pair in batch.pairs],
        batch.candidates,
        [[*pool, *placebos] for pool, placebos in zip(pools, donors, strict=True)],
        [pair.fact for pair in batch.pairs],
    ).cpu()

    rows = zip(score_BCR, batch.candidates, pools, donors, strict=True)
    names = [f"{pair.key}: scores of the {type(judge).__name__}" for pair in batch.pairs]
    return [
        _scored_pair(score_CR[: len(sides)], pool, placebos, name)
        for name, (score_CR, sides, pool, placebos) in zip(names, rows, strict=True)
    ]


def _scored_pair(
    score_CR: Tensor, pool: Sequence[Rationale], donors: Sequence[Rationale], name: str
) -> ScoredPair:
    """The scores of one pair without the padding of its batch."""
    score_CR = score_CR[:, : 1 + len(pool) + len(donors)].float().clone()

    # Without padding every score must be a number: NaN would be read as a missing rationale.
    if not score_CR.isfinite().all():
        raise ValueError(
            f"{name} are not finite, so its model is broken or overflows. Try another dtype, or "
            "train it again."
        )
    return ScoredPair(score_CR, comparable(pool, donors))
