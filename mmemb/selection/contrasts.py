"""Pair-aware counterfactual contrasts: pure functions of scores (docs/method.md section 5).

Shapes: B pairs, C = 1 + N candidates (0 is the target; -inf pads), R = 1 + K columns (0 is without
a rationale; NaN pads), K rationales, J placebo donors. Scores are s / tau or log-odds.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Kind = Literal["similarity", "log_odds"]
"""Kind of a score: `s / tau` of an embedder, or a judge's log-odds of yes against no."""


def contrasts(
    score_BCR: Tensor,
    *,
    kind: Kind = "similarity",
    num_hard_negatives: int = 10,
    placebo_BKJ: Tensor | None = None,
) -> dict[str, Tensor]:
    """Computes all contrasts at once.

    Args:
        score_BCR: scores from `PairJudge.score`.
        kind: decides m(q, t, r): log softmax of the target, or the log-odds as they are.
        num_hard_negatives: top-k per column whose union makes the negatives of `margin`.
        placebo_BKJ: m(q, t, .) of the donors of each rationale, NaN-padded.

    Returns:
        `raw`, `gain`, `positive`, `margin` and, with donors, `placebo_rank`: each (B, K), NaN
        where there is no rationale.
    """
    target_BR = pair_score(score_BCR, kind)
    values = {
        "raw": raw(target_BR),
        "gain": gain(target_BR),
        "positive": positive(score_BCR),
        "margin": margin(score_BCR, num_hard_negatives),
    }

    if placebo_BKJ is not None:
        values["placebo_rank"] = placebo_rank(raw(target_BR), placebo_BKJ)
    return values


def pair_score(score_BCR: Tensor, kind: Kind) -> Tensor:
    """Returns m(q, t, .) for every column, (B, R)."""
    # Log-odds of yes are a probability by themselves; similarities become one among candidates.
    return log_softmax_target(score_BCR) if kind == "similarity" else score_BCR[:, 0]


def log_softmax_target(score_BCR: Tensor) -> Tensor:
    """Log-probability of the target among its candidates, per column.

    >>> log_softmax_target(torch.zeros(1, 4, 1)).exp()
    tensor([[0.2500]])
    """
    return score_BCR.log_softmax(1)[:, 0]


def raw(target_BR: Tensor) -> Tensor:
    """Returns m(q, t, r), (B, K): no counterfactual.

    >>> raw(torch.tensor([[-1.0, -0.5, -3.0]]))
    tensor([[-0.5000, -3.0000]])
    """
    return target_BR[:, 1:]


def gain(target_BR: Tensor) -> Tensor:
    """Returns m(q, t, r) - m(q, t, none), (B, K): the counterfactual do(r = none).

    >>> gain(torch.tensor([[-1.0, -0.5, -3.0]]))
    tensor([[ 0.5000, -2.0000]])
    """
    return target_BR[:, 1:] - target_BR[:, :1]


def positive(score_BCR: Tensor) -> Tensor:
    """Gain of the target's score alone, (B, K): the weak form, blind to the negatives."""
    return gain(score_BCR[:, 0])


def margin(score_BCR: Tensor, num_hard_negatives: int = 10) -> Tensor:
    """Gain of the target's score less the mean gain of its hard negatives, (B, K).

    One set of negatives serves all rationales of a pair, so that they compare. Without negatives
    it equals `positive`.
    """
    hard_BN = hard_negatives(score_BCR, num_hard_negatives)
    shift_BNK = score_BCR[:, 1:, 1:] - score_BCR[:, 1:, :1]
    shift_BNK = torch.where(hard_BN[:, :, None], shift_BNK, 0.0)  # -inf less -inf is NaN

    return positive(score_BCR) - shift_BNK.sum(1) / hard_BN.sum(1)[:, None].clamp(min=1)


def hard_negatives(score_BCR: Tensor, num_hard_negatives: int) -> Tensor:
    """Marks the union of the top-k negatives under none and under each rationale, bool (B, N).

    Negatives that are the top of the direct score alone would regress to the mean under any
    rationale, and so make every margin look better.

    >>> score = torch.tensor([[[9.0, 9.0], [3.0, 1.0], [2.0, 2.0], [1.0, 0.0]]])
    >>> hard_negatives(score, 1)
    tensor([[ True,  True, False]])
    """
    # topk ranks NaN above every number, so the columns of missing rationales go last.
    negative_BNR = score_BCR[:, 1:].nan_to_num(nan=-torch.inf, neginf=-torch.inf)
    top_BkR = negative_BNR.topk(min(num_hard_negatives, negative_BNR.shape[1]), dim=1).indices
    hard_BNR = torch.zeros_like(negative_BNR, dtype=torch.bool).scatter(1, top_BkR, True)

    # Where fewer than k negatives exist, padding is among the top k.
    return (hard_BNR & negative_BNR.isfinite()).any(2)


def placebo_rank(raw_BK: Tensor, placebo_BKJ: Tensor) -> Tensor:
    """Share of donors' rationales (same task, writer, depth; other target) that r beats.

    A tie counts one half; NaN donors are padding; no donors at all give NaN.

    >>> placebo_rank(torch.tensor([[2.0]]), torch.tensor([[[1.0, 2.0, 3.0, float("nan")]]]))
    tensor([[0.5000]])
    """
    raw_BK1 = raw_BK[..., None]
    beats_BKJ = (raw_BK1 > placebo_BKJ).to(raw_BK.dtype) + 0.5 * (raw_BK1 == placebo_BKJ)
    rank_BK = beats_BKJ.sum(-1) / (~placebo_BKJ.isnan()).sum(-1)

    # Comparisons with NaN are false, so a missing rationale would have the rank 0.
    return torch.where(raw_BK.isnan(), torch.nan, rank_BK)


def false_helpful(positive_BK: Tensor, margin_BK: Tensor) -> tuple[int, int]:
    """Counts false-helpful rationales, and all.

    In a false-helpful one the target comes closer, and its hard negatives closer still.

    >>> false_helpful(torch.tensor([[1.0, 1.0, -1.0]]), torch.tensor([[-1.0, 1.0, -1.0]]))
    (1, 3)
    """
    return int(((positive_BK > 0) & (margin_BK < 0)).sum()), int((~positive_BK.isnan()).sum())
