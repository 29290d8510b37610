"""A boring module and its queries and candidates, for tests of callbacks on any split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch
from lightning.pytorch import Callback, LightningModule
from torch import nn

from mmemb.batches import CandidateOutput, DecisionOutput, QueryOutput
from mmemb.records import Query, Side
from tests.tiny_trainer import Stub, trainer_of

NAMES = [f"c{n}" for n in range(6)]


@final
class Boring(LightningModule):
    """Returns the batch that it was given; trains one number."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": self.layer(torch.ones(1)).sum(), "decisions": batch}

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return batch

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return batch

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return batch

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def candidates(rows: Sequence[int]) -> CandidateOutput:
    """Unit vectors along the axes, so that ranks are known."""
    return CandidateOutput(
        torch.eye(6)[list(rows)], tuple(NAMES[r] for r in rows), ("g",) * len(rows), tuple(rows)
    )


def queries(rows: Sequence[int]) -> QueryOutput:
    """Query n asks for c(n); it is closest to it if n is even, else only second."""
    vectors = torch.stack(
        [torch.eye(6)[n] + (2.0 if n % 2 else 0.1) * torch.eye(6)[(n + 1) % 6] for n in rows]
    )
    found = tuple(
        Query(f"q{n}", f"task{n // 3}", "test", f"k{n}", f"k{n}/f", Side("x"), {NAMES[n]: 1.0}, (),
              None, "g")
        for n in rows
    )  # fmt: skip
    depths_B = torch.tensor([n % 2 for n in rows])
    eligible_B = torch.tensor([n != 0 for n in rows])
    return QueryOutput(vectors, found, depths_B, 10 * depths_B, eligible_B)


def split(shares: Mapping[int, Sequence[tuple[Sequence[int], ...]]]) -> Stub:
    """Ranks' rows: world -> per rank (batches of candidates, batches of queries)."""

    def load(rank: int, world: int) -> tuple[list[CandidateOutput], list[QueryOutput]]:
        candidate_rows, query_rows = shares[world][rank]
        return [candidates(r) for r in candidate_rows], [queries(r) for r in query_rows]

    return Stub(test=load, val=load, train=lambda rank, world: [decisions([0])] * 4)


ALL = range(6)
ONE = [([ALL], [[0, 1, 2], [3, 4]])]
SPLITS = {
    "3/2 queries": [([[0, 2, 4]], [[0, 2, 4]]), ([[1, 3, 5]], [[1, 3]])],
    "3/2, one batch more": [([[0], [2, 4]], [[0], [2], [4]]), ([[1, 3, 5]], [[1, 3]])],
    "3/0 queries": [([[0, 1]], [[0, 1, 2], [3, 4]]), ([[2, 3], [4, 5]], [])],
    "all on one rank": [(ONE[0][0], ONE[0][1]), ([], [])],
}


def metrics_of_test(
    folder: Path, world: int, shares: Any, *callbacks: Callback
) -> dict[str, float]:
    trainer = trainer_of(folder, world, callbacks=list(callbacks))
    trainer.test(Boring(), datamodule=split({world: shares}), verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def decisions(depths: Sequence[int], eligible: Sequence[bool] | None = None) -> DecisionOutput:
    depths_B = torch.tensor(depths)
    eligible_B = torch.ones(len(depths), dtype=torch.bool) if eligible is None else eligible
    return DecisionOutput(depths_B, 5 * depths_B, torch.as_tensor(eligible_B))
