"""How much a stage computes: tokens and FLOPs, from the shapes of a model's layers.

Knows neither configurations nor libraries. A multiplication with its addition counts as two FLOPs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from experiments.plan.layers import Tower
from experiments.plan.memory import ModelShape, Training


@final
@dataclass(frozen=True, slots=True)
class Tokens:
    """How long the rows of one kind are.

    Attributes:
        mean: tokens of a row.
        longest: tokens of the longest row; of a generated text, the bound.
    """

    mean: float
    longest: int


NO_TOKENS = Tokens(0.0, 0)


def resized(height: int, width: int, factor: int, least: int, most: int) -> tuple[int, int]:
    """What processors of Qwen make of a picture: sides are multiples of `factor`, the area lies
    between `least` and `most` pixels.

    >>> resized(42, 56, 16, 256, 4096)
    (48, 64)
    """
    high, wide = (max(factor, round(side / factor) * factor) for side in (height, width))
    if high * wide > most:
        shrink = math.sqrt(height * width / most)
        return tuple(  # type: ignore[return-value]
            max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width)
        )
    if high * wide < least:
        grow = math.sqrt(least / (height * width))
        return tuple(math.ceil(side * grow / factor) * factor for side in (height, width))  # type: ignore[return-value]
    return high, wide


def vision_tokens(height: int, width: int, factor: int) -> int:
    """Tokens that a resized picture, or two frames of a clip, take in the language model.

    Args:
        height: of the resized picture, in pixels.
        width: likewise.
        factor: pixels of a token's side: patch size times merge size.

    >>> vision_tokens(64, 48, 16)
    12
    """
    return (height // factor) * (width // factor)


def tower_flops(tower: Tower, rows: float, length: float) -> float:
    """FLOPs of one forward pass: 2 a weight and token, and 4 L a token and query number for the
    scores and the mean of values (a causal mask saves half of that; it is not taken off).

    >>> tower_flops(Tower(blocks=(), weights=10, trained=True), rows=2, length=3)
    120.0
    """
    attending = sum(block.query for block in tower.blocks if block.attends)
    return float(rows * length * (2 * tower.weights + 4 * length * attending))


def pass_factor(model: ModelShape, tower: Tower, training: Training) -> int:
    """Forward passes that a training step of a tower is worth.

    Backward costs two (gradients of inputs and of weights), with LoRA one (of inputs); blocks that
    are recomputed and graphs that a gradient cache makes again cost one more each.
    """
    if not tower.trained:
        return 1 + (training.micro_batches > 1)
    backward = 1 if model.rank else 2
    return 1 + backward + training.checkpointing + (training.micro_batches > 1)


@final
@dataclass(frozen=True, slots=True)
class JudgeTokens:
    """What a yes/no judge reads of one pair.

    Attributes:
        candidates: 1 + N that are shown.
        shared: with pieces that pairs share (METHOD 5).
        naive: every prompt by itself.
    """

    candidates: int
    shared: float
    naive: float


def judge_tokens(
    query: float, candidate: float, ending: float, negatives: int, rationales: int
) -> JudgeTokens:
    """Tokens of one pair with N negatives and K rationales (placebo donors among them).

    Args:
        query: P_q, tokens of the query's piece.
        candidate: P_t, of a candidate's piece.
        ending: L, of a rationale and the question.
        negatives: N; the contrast has no part in it.
        rationales: K.

    >>> judge_tokens(100, 50, 20, negatives=9, rationales=4)
    JudgeTokens(candidates=10, shared=1600, naive=8500)
    """
    shown, asked = 1 + negatives, 1 + rationales
    return JudgeTokens(
        shown,
        query + shown * (candidate + asked * ending),
        shown * asked * (query + candidate + ending),
    )
