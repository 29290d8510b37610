"""Pair-aware counterfactual contrasts (METHOD 5): pure functions of a pair evaluator's scores.

Shapes: B pairs, C = 1 + N candidates (0 is the target; -inf pads), R = 1 + K columns (0 is without
a rationale; NaN pads), K rationales, J placebo donors. Scores are s / tau or log-odds.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from mmemb.records.text import limit_marks

Kind = Literal["similarity", "log_odds"]
"""What a score is: `s / tau` of an embedder, or a judge's log-odds of yes against no."""


def contrasts(
    score_BCR: Tensor,
    *,
    kind: Kind = "similarity",
    num_hard: int = 10,
    placebo_BKJ: Tensor | None = None,
) -> dict[str, Tensor]:
    """All contrasts of METHOD 5 at once.

    Args:
        score_BCR: what `PairEvaluator.score` gives.
        kind: decides m(q, t, r): log softmax of the target, or the log-odds as they are.
        num_hard: top-k per column whose union makes the negatives of `margin`.
        placebo_BKJ: m(q, t, .) of the donors of each rationale, NaN-padded.

    Returns:
        `raw`, `gain`, `positive`, `margin` and, with donors, `placebo_rank`: each (B, K), NaN
        where there is no rationale.
    """
    target_BR = pair_score(score_BCR, kind)
    found = {
        "raw": raw(target_BR),
        "gain": gain(target_BR),
        "positive": positive(score_BCR),
        "margin": margin(score_BCR, num_hard),
    }
    if placebo_BKJ is not None:
        found["placebo_rank"] = placebo_rank(raw(target_BR), placebo_BKJ)
    return found


def pair_score(score_BCR: Tensor, kind: Kind) -> Tensor:
    """m(q, t, .) of METHOD 5 for every column, (B, R)."""
    return log_softmax_target(score_BCR) if kind == "similarity" else score_BCR[:, 0]


def log_softmax_target(score_BCR: Tensor) -> Tensor:
    """Log-probability of the target among its candidates, per column.

    >>> log_softmax_target(torch.zeros(1, 4, 1)).exp()
    tensor([[0.2500]])
    """
    return score_BCR.log_softmax(1)[:, 0]


def raw(target_BR: Tensor) -> Tensor:
    """m(q, t, r), no counterfactual.

    >>> raw(torch.tensor([[-1.0, -0.5, -3.0]]))
    tensor([[-0.5000, -3.0000]])
    """
    return target_BR[:, 1:]


def gain(target_BR: Tensor) -> Tensor:
    """m(q, t, r) - m(q, t, none): the counterfactual do(r = none).

    >>> gain(torch.tensor([[-1.0, -0.5, -3.0]]))
    tensor([[ 0.5000, -2.0000]])
    """
    return target_BR[:, 1:] - target_BR[:, :1]


def positive(score_BCR: Tensor) -> Tensor:
    """How much closer the target comes, whatever the negatives do: the weak form."""
    return gain(score_BCR[:, 0])


def margin(score_BCR: Tensor, num_hard: int = 10) -> Tensor:
    """How much closer the target comes than its hard negatives do on average, (B, K).

    One set of negatives per pair, so that its rationales compare. Without negatives: `positive`.
    """
    hard_BN = hard_negatives(score_BCR, num_hard)
    shift_BNK = score_BCR[:, 1:, 1:] - score_BCR[:, 1:, :1]
    shift_BNK = torch.where(hard_BN[:, :, None], shift_BNK, 0.0)  # -inf less -inf is NaN
    return positive(score_BCR) - shift_BNK.sum(1) / hard_BN.sum(1)[:, None].clamp(min=1)


def hard_negatives(score_BCR: Tensor, num_hard: int) -> Tensor:
    """The union of the top-k negatives under none AND under each rationale, as a (B, N) mask.

    Those of the direct score alone regress to the mean as soon as anything is read.

    >>> score = torch.tensor([[[9.0, 9.0], [3.0, 1.0], [2.0, 2.0], [1.0, 0.0]]])
    >>> hard_negatives(score, 1)
    tensor([[ True,  True, False]])
    """
    negative_BNR = score_BCR[:, 1:].nan_to_num(nan=-torch.inf, neginf=-torch.inf)
    top_BkR = negative_BNR.topk(min(num_hard, negative_BNR.shape[1]), dim=1).indices
    hard_BNR = torch.zeros_like(negative_BNR, dtype=torch.bool).scatter(1, top_BkR, True)
    return (hard_BNR & negative_BNR.isfinite()).any(2)


def placebo_rank(raw_BK: Tensor, placebo_BKJ: Tensor) -> Tensor:
    """Share of donors' rationales (same task, worker, depth; other target) that r beats.

    A tie counts one half; NaN donors are padding; no donors at all give NaN.

    >>> placebo_rank(torch.tensor([[2.0]]), torch.tensor([[[1.0, 2.0, 3.0, float("nan")]]]))
    tensor([[0.5000]])
    """
    raw_BK1 = raw_BK[..., None]
    beats_BKJ = (raw_BK1 > placebo_BKJ).to(raw_BK.dtype) + 0.5 * (raw_BK1 == placebo_BKJ)
    rank_BK = beats_BKJ.sum(-1) / (~placebo_BKJ.isnan()).sum(-1)
    return torch.where(raw_BK.isnan(), torch.nan, rank_BK)


def keep_threshold(contrast: Tensor, share: float) -> float:
    """eta, above which the stated share of the candidates lies (fewer where values tie).

    Args:
        contrast: contrasts of the cross-fitted candidates of `train`, any shape; NaN is padding.
        share: of candidates to keep, in [0, 1].

    >>> keep_threshold(torch.tensor([4.0, 1.0, 3.0, 2.0]), 0.5)
    2.0
    """
    if not 0 <= share <= 1:
        raise ValueError(f"keep share {share} is not between 0 and 1")
    value_N = contrast[~contrast.isnan()].sort(descending=True).values
    if not len(value_N):
        raise ValueError("no candidate was scored: a keep threshold needs at least one contrast")
    num_kept = round(share * len(value_N))
    return float(value_N[num_kept]) if num_kept < len(value_N) else -math.inf


def keep(contrast_BK: Tensor, eta: float) -> Tensor:
    """Keeps r if its contrast is above eta; padding (NaN) is never kept.

    >>> keep(torch.tensor([[1.0, 2.0, float("nan")]]), 1.0)
    tensor([[False,  True, False]])
    """
    return contrast_BK > eta


def weights(
    contrast_BK: Tensor,
    count_BK: Tensor,
    kept_BK: Tensor,
    *,
    temperature: float = 1.0,
    hard: bool = False,
) -> Tensor:
    """w_k proportional to `count_k * exp(contrast_k / T)` over the kept; T = 1: the posterior.

    Args:
        contrast_BK: contrasts, NaN-padded.
        count_BK: how many equal draws each candidate stands for.
        kept_BK: which candidates were kept.
        temperature: T; the smaller, the closer to `hard`.
        hard: all weight on the largest.

    Returns:
        (B, K); rows sum to 1, or to 0 where nothing is kept.

    >>> weights(torch.zeros(1, 2), torch.tensor([[3, 1]]), torch.ones(1, 2).bool())
    tensor([[0.7500, 0.2500]])
    """
    log_BK = contrast_BK / temperature + count_BK.to(contrast_BK.dtype).log()
    log_BK = log_BK.masked_fill(~kept_BK, -torch.inf)
    if hard:
        weight_BK = torch.zeros_like(log_BK).scatter(1, log_BK.argmax(1, keepdim=True), 1.0)
    else:
        weight_BK = log_BK.softmax(1)
    return torch.where(kept_BK, weight_BK, 0.0)


def names_target(text: str, answers: Sequence[str]) -> bool:
    """Whether the text holds one of the answers as whole words, whatever case and accents.

    Reported, never a reason to drop a one-sided rationale: a good one names the answer.

    >>> names_target("It is the Côte d’Ivoire.", ["Cote d'Ivoire"])
    True
    >>> names_target("Nigeria", ["Niger"])
    False
    """
    words = _words(text)
    return any(
        f" {_words(answer)} " in f" {words} " if _words(answer) else answer.strip() in text
        for answer in answers
        if answer.strip()
    )


def _words(text: str) -> str:
    decomposed = unicodedata.normalize("NFKD", limit_marks(text.casefold()))
    bare = "".join(c for c in decomposed if not unicodedata.combining(c))
    return " ".join(re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", bare)))


def false_helpful(positive_BK: Tensor, margin_BK: Tensor) -> tuple[int, int]:
    """False-helpful rationales and all: the target came closer, its hard negatives closer still.

    >>> false_helpful(torch.tensor([[1.0, 1.0, -1.0]]), torch.tensor([[-1.0, 1.0, -1.0]]))
    (1, 3)
    """
    return int(((positive_BK > 0) & (margin_BK < 0)).sum()), int((~positive_BK.isnan()).sum())


def fit_temperature(
    score_BC: Tensor, *, low: float = 1e-3, high: float = 1e3, tolerance: float = 1e-5
) -> float:
    """tau that makes the true target (column 0) most likely under softmax(score / tau).

    The likelihood is concave in 1 / tau, so a golden-section search over log tau finds the one
    maximum; where there is none (all right, all wrong) it ends at the nearer bound.

    Args:
        score_BC: similarities on part `calibration`; -inf pads, rows whose target is NaN are left
            out. Scores that were divided by an old tau give the factor to that tau.
        low: smallest tau.
        high: largest tau.
        tolerance: of log tau.
    """
    score_BC = score_BC[~score_BC[:, 0].isnan()].double()
    if not len(score_BC):
        raise ValueError("no score to fit a temperature to: part `calibration` is empty")

    def loss(log_tau: float) -> float:
        return -float((score_BC / math.exp(log_tau)).log_softmax(1)[:, 0].mean())

    return math.exp(_golden_section(loss, math.log(low), math.log(high), tolerance))


def _golden_section(
    function: Callable[[float], float], low: float, high: float, tolerance: float
) -> float:
    ratio = (math.sqrt(5) - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = function(left), function(right)
    while high - low > tolerance:
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = function(right)
    return (low + high) / 2
