"""A worker that knows something, and a gate with an opinion, for gates that look further."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor

from mmemb.gate_inputs import StatePart
from mmemb.gating import MlpDepthHead
from mmemb.rationales import RationaleWorker
from mmemb.rationales.base import drawn_seeds
from mmemb.records import Rationale, Side, stable_hash

STATES: dict[str, list[StatePart]] = {"probe": ["embedding", "probe"], "scores": ["scores"]}
TAU = 0.07
KNOWN = 6
"""Width of what a `Knower` knows."""


@final
class Knower(RationaleWorker):
    """Knows something of every text, and says the same of each; `salt` is what it was fed."""

    name = "knower"

    def __init__(self, salt: str = "") -> None:
        self.salt = salt
        self.probed: list[str] = []

    def settings(self) -> dict[str, Any]:
        return {"salt": self.salt}

    def write(self, sides: Sequence[Side], seeds_BK: Tensor) -> list[list[Rationale]]:
        text = "<think>Thinking.</think><answer>country-21</answer>"
        return [
            [Rationale(text, "knower", "m", "1", "p", "d", s, 10) for s in drawn_seeds(seeds_K)]
            if self.can_read(side)
            else []
            for side, seeds_K in zip(sides, seeds_BK, strict=True)
        ]

    def probe(self, sides: Sequence[Side]) -> Tensor:
        assert all(map(self.can_read, sides)), "nobody asks about what it cannot read"
        self.probed += [side.text for side in sides]
        states = [self.state_of(side) for side in sides]
        return torch.stack(states) if states else torch.zeros(0, KNOWN)

    def state_of(self, side: Side) -> Tensor:
        """(H,) what it knows about one side."""
        random = torch.Generator().manual_seed(stable_hash(self.salt, side.digest))
        return torch.randn(KNOWN, generator=random)


def opinionated(width: int, depths: int = 2) -> MlpDepthHead:
    """A linear head that wants to reason about some."""
    head = MlpDepthHead(width, depths, hidden_dim=0)
    with torch.no_grad():
        head.output.weight[1] = torch.randn(width, generator=torch.Generator().manual_seed(2))
    return head
