"""CounterfactualSelector: stage 2, which rationales really help their pair (METHOD 5).

Shapes: B pairs, C candidates (the target first), R columns (none, then rationales), K rationales,
J donors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, final

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.optim import Optimizer
from typing_extensions import override

from mmemb.batches import PairRowBatch, SidecarOutput, SidecarRow
from mmemb.counterfactual import (
    contrasts,
    fit_temperature,
    keep,
    keep_threshold,
    names_target,
    weights,
)
from mmemb.distributed import gather_objects
from mmemb.evaluators import PairEvaluator
from mmemb.lineage import write_json
from mmemb.metrics import MeanSums
from mmemb.records import Rationale, scored_to_json, stable_hash

Contrast = Literal["raw", "gain", "positive", "margin", "placebo_rank"]


@final
class CounterfactualSelector(LightningModule):
    """fit: tau on calibration, eta on train; predict: `selected/`; test: keep rates, swap test.

    Args:
        evaluator: judges pairs that it was not fitted on.
        selection: folder of this stage's own fit (`selection.json`), read by predict and test.
        contrast: what is compared with eta.
        keep_share: share of the candidates of `train` that eta keeps.
        min_placebo_rank: share of foreign rationales that a kept one beats at least; 1 = all.
        weight_temperature: T of the weights; 1 makes them the posterior.
        num_donors: foreign rationales per pair, for the placebo rank and the swap test.
        num_hard: hard negatives under each path, for `margin`.
    """

    def __init__(
        self,
        evaluator: PairEvaluator,
        selection: str,
        contrast: Contrast = "gain",
        keep_share: float = 0.35,
        min_placebo_rank: float = 0.0,
        weight_temperature: float = 1.0,
        num_donors: int = 3,
        num_hard: int = 10,
    ) -> None:
        super().__init__()
        self.evaluator = evaluator
        self.selection = Path(selection)
        self.contrast, self.keep_share = contrast, keep_share
        self.min_placebo_rank = min_placebo_rank
        self.weight_temperature = weight_temperature
        self.num_donors, self.num_hard = num_donors, num_hard
        self.automatic_optimization = False  # nothing is trained by gradient here,
        self.unused = nn.Parameter(torch.zeros(1))  # but DDP refuses a module without parameters
        self._train_scores: list[tuple[Tensor, int]] = []
        self._calibration_scores: list[Tensor] = []
        self._sums = MeanSums()
        self.tau, self.eta = 1.0, 0.0

    @override
    def setup(self, stage: str) -> None:
        if stage in {"predict", "test"}:
            fitted = read_selection(self.selection)
            self.tau, self.eta = fitted["tau"], fitted["eta"]

    # fit

    @override
    def training_step(self, batch: PairRowBatch, batch_idx: int) -> None:
        if batch.pairs:
            self._train_scores.append(self._score(batch))

    @override
    def validation_step(self, batch: PairRowBatch, batch_idx: int) -> None:
        score_BCR, num_own = self._score(batch)
        # Every path that will be asked for a probability: without, and with the own rationale.
        own_BCR = score_BCR[:, :, : 1 + num_own]
        self._calibration_scores.extend(own_BCR.unbind(2))

    @override
    def on_validation_epoch_end(self) -> None:
        columns = gather_objects(self._calibration_scores)  # by all ranks, also one without any
        self._calibration_scores = []
        if self.trainer.sanity_checking or not columns:
            return
        rows = [row for column in columns for row in column if not row[0].isnan()]
        score_BC = pad_sequence(rows, batch_first=True, padding_value=-torch.inf)
        self.tau = fit_temperature(score_BC)
        self.log("val/tau", self.tau, sync_dist=True)

    @override
    def on_train_epoch_end(self) -> None:
        found = [self._contrast(score, own).flatten() for score, own in self._train_scores]
        self.eta = keep_threshold(torch.cat(gather_objects(found)), self.keep_share)
        self.log("train/eta", self.eta, sync_dist=True)

    @override
    def on_train_end(self) -> None:
        if self.trainer.is_global_zero:
            fitted = {"tau": self.tau, "eta": self.eta, "contrast": self.contrast}
            fitted |= {"min_placebo_rank": self.min_placebo_rank}
            path = Path(self.trainer.default_root_dir) / "selection.json"
            write_json(path, fitted | {"keep_share": self.keep_share})

    @override
    def configure_optimizers(self) -> list[Optimizer]:
        return []

    # predict

    @override
    def predict_step(
        self, batch: PairRowBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> SidecarOutput:
        score_BCR, num_own = self._score(batch)
        found = self._contrasts(score_BCR, num_own)
        contrast_BK = self._chosen_by(found)
        count_BK = torch.ones_like(contrast_BK)
        for row, pool in enumerate(batch.rationales):
            count_BK[row, : len(pool)] = torch.tensor([float(s.rationale.count) for s in pool])
        kept_BK = keep(contrast_BK, self.eta)
        weight_BK = weights(contrast_BK, count_BK, kept_BK, temperature=self.weight_temperature)
        rows = []
        for row, pair in enumerate(batch.pairs):
            scored = [
                replace(
                    candidate,
                    scores={name: _rounded(value[row, k]) for name, value in found.items()},
                    names_target=names_target(candidate.rationale.plain, pair.answers),
                    kept=bool(kept_BK[row, k]),
                    weight=_rounded(weight_BK[row, k]),
                )
                for k, candidate in enumerate(batch.rationales[row])
            ]
            meta = {"task": pair.task, "part": pair.part, "concept": pair.concept}
            members = {"json": [scored_to_json(candidate) for candidate in scored]}
            rows.append(SidecarRow(pair.key, members, meta | {"fact": pair.fact}))
        return SidecarOutput(batch.shard, tuple(rows))

    # test

    @override
    def test_step(self, batch: PairRowBatch, batch_idx: int) -> None:
        """Keep rates, and the swap test: log-probability with own, foreign and no rationale."""
        candidates = [scored for pool in batch.rationales for scored in pool]
        if not candidates:
            return
        score_BCR, num_own = self._score(batch)
        target_BR = (score_BCR / self.tau).log_softmax(1)[:, 0]
        columns = {
            "none": target_BR[:, 0],
            "own": target_BR[:, 1 : 1 + num_own],
            "foreign": target_BR[:, 1 + num_own :],
        }
        for name, value in columns.items():
            known = value[~value.isnan()]
            if len(known):
                self._log_mean(f"test/swap_{name}", known.tolist())
        self._log_mean("test/keep_rate", [float(s.kept) for s in candidates])
        named = [float(bool(s.names_target)) for s in candidates]
        self._log_mean("test/names_target", named)
        kept = [float(bool(s.names_target)) for s in candidates if s.kept]
        if kept:
            self._log_mean("test/names_target_kept", kept)

    def _log_mean(self, name: str, values: Sequence[float]) -> None:
        self._sums.add(name, sum(values), len(values))

    @override
    def on_test_epoch_end(self) -> None:
        # Sums: ranks may hold unequal numbers of candidates. The means are equal on all of them.
        self.log_dict(self._sums.compute(), sync_dist=True)
        self._sums.reset()

    # scores

    @torch.no_grad()
    def _score(self, batch: PairRowBatch) -> tuple[Tensor, int]:
        """(B, C, 1 + K + J) scores at tau 1, and K: own rationales first, then donors."""
        own = [[scored.rationale for scored in pool] for pool in batch.rationales]
        donors = [self._donors(batch, row) for row in range(len(own))]
        queries = [pair.query for pair in batch.pairs]
        facts = [pair.fact for pair in batch.pairs]
        with_none = self.evaluator.score(queries, batch.candidates, own, facts)
        foreign = self.evaluator.score(queries, batch.candidates, donors, facts)[:, :, 1:]
        return torch.cat([with_none, foreign], dim=2).cpu(), with_none.shape[2] - 1

    def _donors(self, batch: PairRowBatch, row: int) -> list[Rationale]:
        """Rationales of the same task about another concept, drawn by key."""
        pair = batch.pairs[row]
        pool: list[tuple[int, Rationale]] = [
            (stable_hash("donor", pair.key, other.key), candidates[0].rationale)
            for other, candidates in zip(batch.pairs, batch.rationales, strict=True)
            if candidates and other.task == pair.task and other.concept != pair.concept
        ]
        ranked = sorted(pool, key=lambda item: item[0])
        return [rationale for _, rationale in ranked[: self.num_donors]]

    def _contrasts(self, score_BCR: Tensor, num_own: int) -> Mapping[str, Tensor]:
        score_BCR = score_BCR / self.tau
        own_BCR, foreign_BCR = score_BCR[:, :, : 1 + num_own], score_BCR[:, :, 1 + num_own :]
        placebo_BJ = foreign_BCR.log_softmax(1)[:, 0]
        if not placebo_BJ.shape[1]:  # a last batch of one pair has no donors: its rank is NaN
            placebo_BJ = placebo_BJ.new_full((len(placebo_BJ), 1), torch.nan)
        placebo_BKJ = placebo_BJ[:, None].expand(-1, num_own, -1)
        return contrasts(own_BCR, num_hard=self.num_hard, placebo_BKJ=placebo_BKJ)

    def _contrast(self, score_BCR: Tensor, num_own: int) -> Tensor:
        return self._chosen_by(self._contrasts(score_BCR, num_own))

    def _chosen_by(self, found: Mapping[str, Tensor]) -> Tensor:
        """(B, K) the contrast, lowest of all where too few placebos are beaten (METHOD 5: the rank,
        together with the gain). Without donors nobody is beaten, and nobody beats."""
        below_BK = found["placebo_rank"] < self.min_placebo_rank
        return found[self.contrast].masked_fill(below_BK, -torch.inf)


def read_selection(folder: Path) -> dict[str, float]:
    """Reads the fitted tau and eta."""
    path = folder / "selection.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: tau and eta are not fitted yet. Run `python -m experiments.run "
            "fit` with the same config first."
        )
    return json.loads(path.read_text(encoding="utf-8"))


def _rounded(value: Tensor) -> float | None:
    number = float(value)
    return None if number != number else round(number, 4)
