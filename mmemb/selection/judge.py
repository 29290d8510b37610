"""PairJudge: scores pairs without and with rationales (docs/method.md sections 3 and 5).

Shapes: B pairs, C = 1 + N candidates (the target first), R = 1 + K columns (none first).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from mmemb.records.inputs import Side
from mmemb.records.rationales import Rationale
from mmemb.selection.contrasts import Kind


class PairJudge(ABC):
    """Judges how well a query and a candidate fit, without and with each rationale.

    Log softmax, gain, margin and rank are functions of these scores
    (`mmemb.selection.contrasts`).

    Attributes:
        kind: kind of a score, `s / tau` of an embedder or a judge's log-odds.
        model_arguments: arguments of the constructor that name folders or hub ids of models.
    """

    kind: Kind = "similarity"
    model_arguments: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def score(
        self,
        queries: Sequence[Side],
        candidates: Sequence[Sequence[Side]],
        rationales: Sequence[Sequence[Rationale]],
        facts: Sequence[str],
    ) -> Tensor:
        """Scores every candidate under every rationale of its query.

        Args:
            queries: B queries.
            candidates: per query its target, then N negatives; N may differ.
            rationales: per query its K rationales (placebo donors among them); K may differ.
            facts: per query what a model that trains on this pair learns; no judge scores a fact
                that it was fitted on.

        Returns:
            (B, 1 + N, 1 + K) float32 scores, s / tau or log-odds. Column 0 is without a rationale.
            Columns of missing rationales are NaN throughout; in the others, missing candidates
            are -inf.
        """

    @abstractmethod
    def identity(self) -> str:
        """Hash of all that decides a score: stored scores of another identity are made again."""


def pad_scores(scores: Sequence[Tensor]) -> Tensor:
    """Pads the scores (C, R) of B pairs to one batch, as `PairJudge.score` returns it."""
    num_candidates = max((score_CR.shape[0] for score_CR in scores), default=0)
    num_columns = max((score_CR.shape[1] for score_CR in scores), default=1)
    score_BCR = torch.full((len(scores), num_candidates, num_columns), -torch.inf)

    for padded_CR, score_CR in zip(score_BCR, scores, strict=True):
        padded_CR[: len(score_CR), : score_CR.shape[1]] = score_CR
        # A missing column is NaN over all candidates, also over those that are padding.
        padded_CR[:, score_CR.shape[1] :] = torch.nan
    return score_BCR
