"""Selects again among candidates that were scored before: what ablations of METHOD 5 vary.

Knows no model: the contrasts are read, not computed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, final, get_args

import torch
from msgspec.structs import replace
from torch import Tensor

from mmemb.records.rationales import ScoredRationale
from mmemb.selection.counterfactual import keep, keep_threshold, weights

Rule = Literal["none", "raw", "gain", "positive", "margin", "placebo_gain"]
"""`none` keeps all; `placebo_gain` keeps by gain among those that beat half of the placebos."""

Pool = tuple[ScoredRationale, ...]


@final
@dataclass(frozen=True, slots=True)
class Reselection:
    """How to choose.

    Attributes:
        rule: by which contrast.
        keep_share: of the distinct candidates of all pools together.
        hard: all weight on the best kept one.
    """

    rule: Rule = "gain"
    keep_share: float = 0.3
    hard: bool = False

    def __post_init__(self) -> None:
        if self.rule not in get_args(Rule):
            raise ValueError(f"rule {self.rule!r}: expected one of {list(get_args(Rule))}")


def reselect(pools: Sequence[Pool], choice: Reselection) -> list[Pool]:
    """The same candidates with `kept` and `weight` set anew; contrasts stay as they are.

    All rules but `none` keep the same share, so that what is compared is which ones, not how many
    (`placebo_gain` fewer, where fewer beat half of the placebos).

    Raises:
        ValueError: a candidate lacks the contrast that the rule needs.
    """
    contrast_BK, count_BK = _columns(pools, choice.rule)
    eta = -math.inf if choice.rule == "none" else keep_threshold(contrast_BK, choice.keep_share)
    kept_BK = keep(contrast_BK, eta) & contrast_BK.isfinite()
    weight_BK = weights(contrast_BK, count_BK, kept_BK, hard=choice.hard)
    return [
        tuple(
            replace(scored, kept=bool(kept_BK[row, k]), weight=float(weight_BK[row, k]))
            for k, scored in enumerate(pool)
        )
        for row, pool in enumerate(pools)
    ]


def of_seeds(pool: Pool, seeds: Collection[int]) -> Pool:
    """What the pool would be had only these draws been made; counts shrink with them."""
    found = []
    for scored in pool:
        drawn = scored.rationale.seeds or (scored.rationale.seed,)
        if count := len([seed for seed in drawn if seed in seeds]):
            found.append(replace(scored, rationale=replace(scored.rationale, count=count)))
    return tuple(found)


def _columns(pools: Sequence[Pool], rule: Rule) -> tuple[Tensor, Tensor]:
    """(B, K) contrasts, NaN where there is no candidate, and counts."""
    width = max((len(pool) for pool in pools), default=0)
    contrast_BK = torch.full((len(pools), width), torch.nan, dtype=torch.float64)
    count_BK = torch.ones_like(contrast_BK)
    for row, pool in enumerate(pools):
        for k, scored in enumerate(pool):
            contrast_BK[row, k] = _contrast(scored, rule)
            count_BK[row, k] = scored.rationale.count
    return contrast_BK, count_BK


def _contrast(scored: ScoredRationale, rule: Rule) -> float:
    if rule == "none":
        return 0.0
    name = "gain" if rule == "placebo_gain" else rule
    if (value := scored.scores.get(name)) is None:
        raise ValueError(
            f"A candidate of worker {scored.rationale.worker!r} was not scored by {name!r}: run "
            "the stage that makes selected/ again."
        )
    rank = scored.scores.get("placebo_rank")
    # Beaten by the placebos: behind everything, and never kept (`keep` needs a finite contrast).
    return -math.inf if rule == "placebo_gain" and rank is not None and rank < 0.5 else value
