"""RationaleGenerator: stage 1, the prior. Workers write from one side only (METHOD 4)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, final

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from typing_extensions import override

from mmemb.batches import PairRowBatch, SideBatch, SidecarOutput, SidecarRow
from mmemb.counterfactual import names_target
from mmemb.metrics import MeanSums
from mmemb.rationales import NO_DRAW, RationaleWorker, fold_candidates
from mmemb.records import GREEDY, Rationale, ScoredRationale, scored_to_json, stable_hash


@final
class RationaleGenerator(LightningModule):
    """predict: `rationales/`; test: format, tokens and leaks of what was written.

    Training pairs get `num_candidates` samples of every worker; queries of the other parts get
    what the test will have: one greedy draw, and further sampled ones if `num_test_draws` > 1.

    Args:
        workers: name -> worker; the union of what they write is the pool.
        num_candidates: K, samples per training query and worker.
        num_test_draws: draws per evaluation query; draw 0 is greedy.
        max_tokens: longer candidates are dropped and counted.
        probe: name of the worker whose hidden state at its prompt's end goes into `probe.npy`,
            for a gate that reads it; null writes none.
        seed: with key and candidate number it decides every draw, so one shard regenerates to the
            same bytes.
    """

    def __init__(
        self,
        workers: dict[str, RationaleWorker],
        num_candidates: int = 4,
        num_test_draws: int = 1,
        max_tokens: int = 96,
        probe: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if num_candidates < 1:
            raise ValueError(f"num_candidates {num_candidates}: expected 1 (greedy) or more")
        if probe is not None and probe not in workers:
            raise ValueError(f"probe {probe!r} names no worker; they are {sorted(workers)}")
        self.probe = probe
        self.workers = workers  # a dict, not a ModuleDict: frozen writers stay out of checkpoints
        self.num_candidates = num_candidates
        self.num_test_draws = num_test_draws
        self.max_tokens = max_tokens
        self.seed = seed
        self.counts: Counter[str] = Counter()
        self.sums = MeanSums()

    @override
    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.configure_optimizers()

    @override
    def configure_optimizers(self) -> None:
        raise ValueError(
            "RationaleGenerator has no fit yet: fine-tuning the generator on kept rationales "
            "(the second EM round) comes with a later release; use predict and test."
        )

    @override
    def training_step(self, batch: SideBatch, batch_idx: int) -> None:
        self.configure_optimizers()  # never reached: it is here for Lightning to come to `setup`

    @override
    def predict_step(
        self, batch: SideBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> SidecarOutput:
        seeds_BK = self._seeds(batch)
        pools: list[list[Rationale]] = [[] for _ in batch.keys]
        for worker in self.workers.values():
            for pool, written in zip(pools, worker.write(batch.sides, seeds_BK), strict=True):
                pool.extend(written)
        members: list[dict[str, Any]] = [
            {"json": self._candidates(pool, meta)}
            for pool, meta in zip(pools, batch.metas, strict=True)
        ]
        for row, state_H in self._probed(batch).items():
            members[row]["probe.npy"] = state_H.numpy().astype(np.float16)
        rows = map(SidecarRow, batch.keys, members, batch.metas)
        return SidecarOutput(batch.shard, tuple(rows))

    def _probed(self, batch: SideBatch) -> dict[int, Tensor]:
        """Row -> (H,) what the probed worker knows about it; absent where it cannot read."""
        if self.probe is None:
            return {}
        worker = self.workers[self.probe]
        rows = [row for row, side in enumerate(batch.sides) if worker.can_read(side)]
        return dict(zip(rows, worker.probe([batch.sides[row] for row in rows]), strict=True))

    @override
    def on_predict_end(self) -> None:
        counts = ", ".join(f"{name} {self.counts[name]}" for name in sorted(self.counts))
        print(f"rationales: {counts or 'nothing to generate, 0 tokens'}")

    @override
    def test_step(self, batch: PairRowBatch, batch_idx: int) -> None:
        rows = [
            (scored.rationale, pair)
            for pair, pool in zip(batch.pairs, batch.rationales, strict=True)
            for scored in pool
        ]
        for rationale, pair in rows:
            values = {
                "format_rate": float(bool(rationale.thinking and rationale.answer)),
                "reasoning_tokens": float(rationale.num_tokens),
                "names_target": float(names_target(rationale.plain, pair.answers)),
            }
            self.sums.add_all(values, prefix="test/")

    @override
    def on_test_epoch_end(self) -> None:
        # Sums: ranks may hold unequal numbers of candidates. The means are equal on all of them.
        self.log_dict(self.sums.compute(), sync_dist=True)
        self.sums.reset()

    def _seeds(self, batch: SideBatch) -> Tensor:
        rows = [
            self._draws(key, meta["part"])
            for key, meta in zip(batch.keys, batch.metas, strict=True)
        ]
        width = max(map(len, rows))
        return torch.tensor([row + [NO_DRAW] * (width - len(row)) for row in rows])

    def _draws(self, key: str, part: str) -> list[int]:
        if part == "train":
            return [stable_hash(self.seed, key, k) for k in range(self.num_candidates)]
        sampled = [stable_hash(self.seed, key, k) for k in range(1, self.num_test_draws)]
        return [GREEDY, *sampled]

    def _candidates(
        self, pool: list[Rationale], meta: Mapping[str, str]
    ) -> list[dict[str, object]]:
        """A training pool is merged and cleaned, and loses draws about a concept that the worker's
        prompt names; at test time a broken draw was paid for, so it stays (an embedder reads
        nothing in it)."""
        self.counts["drawn"] += len(pool)
        self.counts["generated tokens"] += sum(rationale.num_tokens for rationale in pool)
        if meta["part"] == "train":
            named = frozenset().union(*(worker.concepts for worker in self.workers.values()))
            self.counts["named in the prompt"] += len(pool) * (meta["concept"] in named)
            pool = [] if meta["concept"] in named else pool
            pool, dropped = fold_candidates(pool, max_tokens=self.max_tokens)
            self.counts.update(dropped)
        return [scored_to_json(ScoredRationale(rationale)) for rationale in pool]
