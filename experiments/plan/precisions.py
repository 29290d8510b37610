"""The precisions in which a stage may compute, and how many bytes their numbers take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch

FP32 = 4
"""Bytes of a number in full precision."""


@final
@dataclass(frozen=True, slots=True)
class Precision:
    """The types of the numbers of a step.

    Attributes:
        weight: bytes of a parameter, of its gradient and of each of its moments.
        compute: bytes of an operand of a matrix product.
        dtype: type of the weights while a pass reads them.
        autocast: whether a pass casts operands to bfloat16, and copies weights for it.
    """

    weight: int
    compute: int
    dtype: torch.dtype
    autocast: bool = False


PRECISIONS: Mapping[str, Precision] = {
    "float32": Precision(4, 4, torch.float32),
    "bfloat16": Precision(2, 2, torch.bfloat16),
    "float16": Precision(2, 2, torch.float16),
    # A trainer's `bf16-mixed` or `16-mixed` around float32 weights.
    "mixed": Precision(4, 2, torch.float32, autocast=True),
    # The same under fsdp2, which casts the weights itself when it gathers them.
    "sharded": Precision(4, 2, torch.bfloat16, autocast=True),
}
"""By the name of a type of weights, or of a way to mix types."""
