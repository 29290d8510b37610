"""Compares contrasts at one keep rate by the planted truth, without a model.

Contrasts: docs/method.md section 5. Shapes: B pairs, K rationales, J donors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from experiments.bootstrap import Interval, paired_bootstrap, seed_spread
from experiments.planted.world import KIND_SHARES, PlantedWorld, keep_precision, kept_hits
from mmemb.selection.contrasts import contrasts
from mmemb.selection.keep_rule import keep_threshold

CONTRASTS = ("raw", "positive", "gain", "margin", "placebo_rank")
WEAK = ("raw", "positive")
"""Contrasts that `margin` must beat (docs/method.md section 10)."""

CONTROL = "no false-helpful"
SETTINGS = {
    "mixed": KIND_SHARES,
    "few helpful": (0.1, 0.6, 0.2, 0.1),
    "many helpful": (0.5, 0.3, 0.1, 0.1),
    "many false-helpful": (0.2, 0.2, 0.5, 0.1),
    "many leaks": (0.3, 0.2, 0.2, 0.3),
    CONTROL: (0.3, 0.6, 0.0, 0.1),
}
"""Shares of helpful, useless, false-helpful and leaking rationales. In the control nothing moves to
the target and nearer its look-alikes, which is what `margin` is there for."""


def read_contrasts(
    world: PlantedWorld,
    generator: torch.Generator,
    *,
    temperature: float = 0.2,
    num_hard_negatives: int = 10,
    num_placebos: int = 16,
) -> dict[str, Tensor]:
    """Reads every contrast of a world, (B, K) each; NaN where provenance drops a leak.

    Ranks tie, and a threshold keeps fewer where values tie. So ties of `placebo_rank` are broken
    at random: all contrasts are compared at exactly one keep rate.
    """
    placebo_BKJ = world.placebo(num_placebos, generator, temperature)
    values = contrasts(
        world.score(temperature), num_hard_negatives=num_hard_negatives, placebo_BKJ=placebo_BKJ
    )

    step = 1 / (2 * num_placebos**2)  # two ranks a / 2m and b / 2n differ by at least this, or not
    noise_BK = torch.rand(world.kind_BK.shape, generator=generator)

    # Less than the smallest step between two ranks, so no order is turned.
    values["placebo_rank"] = values["placebo_rank"] + 0.99 * step * noise_BK

    return {name: values[name].masked_fill(world.names_target, torch.nan) for name in CONTRASTS}


@final
@dataclass(frozen=True, slots=True)
class Finding:
    """Result of a share setting at one keep rate, over several worlds.

    Attributes:
        precision: of each contrast, a number per world: helpful ones among the kept.
        ceiling: precision of an oracle at this keep rate, averaged over worlds.
        chance: that of keeping at random.
        differences: margin minus each other contrast: interval over concepts of all worlds.
        spread: standard deviation of those differences over worlds, if there are several.
    """

    precision: dict[str, list[float]]
    ceiling: float
    chance: float
    differences: dict[str, Interval]
    spread: dict[str, float]


def compare(
    worlds: Sequence[PlantedWorld], readings: Sequence[dict[str, Tensor]], share: float
) -> Finding:
    """Compares the contrasts at one keep rate.

    Args:
        worlds: independent draws of one setting.
        readings: `read_contrasts` of each.
        share: of the rationales to keep.
    """
    pairs = list(zip(worlds, readings, strict=True))

    precision = {
        name: [keep_precision(values[name], world.helpful, share) for world, values in pairs]
        for name in CONTRASTS
    }

    base = float(np.mean([_base_rate(world) for world in worlds]))
    others = [name for name in CONTRASTS if name != "margin"]

    return Finding(
        precision=precision,
        ceiling=min(1.0, base / share),
        chance=base,
        differences={name: difference(pairs, "margin", name, share) for name in others},
        spread={
            name: seed_spread(np.subtract(precision["margin"], precision[name])[:, None])
            for name in (others if len(worlds) > 1 else ())
        },
    )


def difference(
    pairs: Sequence[tuple[PlantedWorld, dict[str, Tensor]]],
    strong: str,
    weak: str,
    share: float,
    num_resamples: int = 2000,
) -> Interval:
    """Returns one contrast's precision minus another's, at one keep rate; clusters are concepts."""
    # Both contrasts keep the same share, so neither wins by keeping fewer.
    left = [pair_precision(values[strong], world.helpful, share) for world, values in pairs]
    right = [pair_precision(values[weak], world.helpful, share) for world, values in pairs]

    # Worlds draw concepts of their own, so a number of two worlds names two clusters.
    clusters = [
        (number, concept)
        for number, (world, _) in enumerate(pairs)
        for concept in world.concept_B.tolist()
    ]

    return paired_bootstrap(
        torch.cat(left), torch.cat(right), clusters, num_resamples=num_resamples
    )


def pair_precision(contrast_BK: Tensor, helpful_BK: Tensor, share: float) -> Tensor:
    """Returns the part of each pair in the precision at a keep rate, (B,): its mean is that.

    The plain sum of hits would be the wrong thing to resample: where concepts that keep much are
    drawn, the threshold rises, and what lies at the threshold goes. So each rationale kept above
    the rate counts as one lost there. Measured: intervals up to twice too wide without (`raw`,
    whose kept ones sit in easy concepts), right with it.
    """
    hits_B, kept_B = kept_hits(contrast_BK, helpful_BK, share)
    scored_B = (~contrast_BK.isnan()).sum(1).double()

    due_B = kept_B.sum() / scored_B.sum() * scored_B
    lost = _edge_rate(contrast_BK, helpful_BK, share)

    return (hits_B - lost * (kept_B - due_B)) / kept_B.double().mean()


def _edge_rate(contrast_BK: Tensor, helpful_BK: Tensor, share: float, width: float = 0.05) -> float:
    """Returns the share of helpful ones among candidates whose rank is near the threshold's."""
    low = keep_threshold(contrast_BK, min(1.0, share + width / 2))
    high = keep_threshold(contrast_BK, max(0.0, share - width / 2))
    near_BK = (contrast_BK > low) & (contrast_BK <= high)
    return float(helpful_BK[near_BK].double().mean().nan_to_num(0.0))


def _base_rate(world: PlantedWorld) -> float:
    """Returns the share of helpful ones among what provenance leaves over."""
    return float(world.helpful.sum() / (~world.names_target).sum())
