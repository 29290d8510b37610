"""A loss as a sum and a count: what losses return, and what is divided over all ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor


@final
@dataclass(frozen=True, slots=True)
class LossTerm:
    """A loss as the sum over this rank's rows and their number, so that ranks may be uneven."""

    sum: Tensor
    count: Tensor
