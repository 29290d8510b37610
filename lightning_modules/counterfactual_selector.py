"""CounterfactualSelector: stage 2, which rationales really help their pair.

See docs/method.md section 5. Shapes: B pairs, K rationales, J placebos.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, final

import torch
from lightning.pytorch import LightningModule
from msgspec.structs import replace
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_modules.judging import judge_missing
from mmemb.records.outputs import SidecarOutput, SidecarRow, StepOutput
from mmemb.records.rationales import scored_to_json
from mmemb.records.schema import to_json
from mmemb.retrieval.running_means import MeanSums
from mmemb.selection import PairJudge
from mmemb.selection.answers import names_target
from mmemb.selection.contrasts import log_softmax_target
from mmemb.selection.fitted_selection import (
    FILE,
    Selection,
    check_rule,
    fit_selection,
    read_selection,
)
from mmemb.selection.keep_rule import Contrast, KeepRule
from mmemb.selection.pair_scores import JudgedPairs, SelectionScores
from mmemb.storage.json_files import write_json
from mmemb.storage.protocols import JudgeData, require


@final
class CounterfactualSelector(LightningModule):
    """fit: tau on calibration, eta on train; predict: `selected/`; test: keep rates, swap test.

    All three read the judge's scores from a sidecar. The first command makes it, the others find
    it, and no pair is judged twice (docs/decisions.md).

    Args:
        judge: judges pairs that it was not fitted on.
        selector_run: folder of this stage's own fit (`selection.json`), read by predict and test.
        contrast: the contrast that is compared with eta.
        keep_share: share of the drafts of `train` that eta keeps.
        min_placebo_rank: share of placebos that a kept one beats at least; 1 = all.
        weight_temperature: T of the weights; 1 makes them the posterior.
        num_placebos: placebos per pair, writer and depth, for the placebo rank and the swap
            test.
        num_hard_negatives: hard negatives under each path, for `margin`.
    """

    # Judges choose among rationales; weights are trained on the rationales alone.
    CALIBRATION_KEYS: ClassVar[frozenset[str]] = frozenset({"judge", "selector_run"})

    def __init__(
        self,
        judge: PairJudge,
        selector_run: str,
        contrast: Contrast = "gain",
        keep_share: float = 0.35,
        min_placebo_rank: float = 0.0,
        weight_temperature: float = 1.0,
        num_placebos: int = 3,
        num_hard_negatives: int = 10,
    ) -> None:
        super().__init__()
        self.rule = KeepRule(
            contrast=contrast,
            keep_share=keep_share,
            min_placebo_rank=min_placebo_rank,
            weight_temperature=weight_temperature,
        )
        self.judge, self.selector_run = judge, Path(selector_run)
        self.num_placebos, self.num_hard_negatives = num_placebos, num_hard_negatives
        self.fitted: Selection | None = None
        self._sums = MeanSums()

        # tau and eta are searched for, not trained; but DDP refuses a module without parameters.
        self.automatic_optimization = False
        self.unused = nn.Parameter(torch.zeros(1))

    @override
    def setup(self, stage: str) -> None:
        # Before anything is judged: to read what was fitted takes no time.
        if stage in {"predict", "test"}:
            self.fitted = read_selection(self.selector_run)
            check_rule(self.fitted, self.selector_run, self.rule, self.num_hard_negatives)

        data = require(self.trainer.datamodule, JudgeData, type(self).__name__)
        judge_missing(self.trainer, data, self.judge, self.num_placebos)

    # fit

    @override
    def training_step(self, batch: SelectionScores, batch_idx: int) -> None:
        # The one batch holds all scores, so that every rank fits the same numbers.
        self.fitted = fit_selection(
            batch.calibration, batch.pairs, self.rule, self.num_hard_negatives
        )

        logged = {"val/tau": self.fitted.tau, "train/eta": self.fitted.threshold}
        self.log_dict(logged, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)

    @override
    def on_train_end(self) -> None:
        if self.trainer.is_global_zero and self.fitted is not None:
            (path,) = self.products("fit")
            write_json(path, to_json(self.fitted))

    def products(self, stage: str) -> list[Path]:
        """The fitted tau and eta; see `mmemb.storage.products.Producer`."""
        return [Path(self.trainer.default_root_dir) / FILE] if stage == "fit" else []

    @override
    def configure_optimizers(self) -> list[Optimizer]:
        return []

    # predict

    @override
    def predict_step(
        self, judged: JudgedPairs, batch_idx: int, dataloader_idx: int = 0
    ) -> StepOutput:
        batch, fitted = judged.batch, self._fitted
        contrasts = judged.scores.contrasts(fitted.tau, self.num_hard_negatives)
        kept_BK, weight_BK = self.rule.choose(
            self.rule.value(contrasts), judged.count_BK, fitted.threshold
        )

        rows = []
        for row, pair in enumerate(batch.pairs):
            chosen = [
                replace(
                    draft,
                    scores={name: _rounded(value[row, k]) for name, value in contrasts.items()},
                    names_target=names_target(draft.rationale.plain, pair.answers),
                    kept=bool(kept_BK[row, k]),
                    weight=_rounded(weight_BK[row, k]),
                )
                for k, draft in enumerate(batch.rationales[row])
            ]
            members = {"json": [scored_to_json(draft) for draft in chosen]}
            meta = {"task": pair.task, "split": pair.split, "concept": pair.concept}
            meta |= {"fact": pair.fact, **batch.mark(row)}
            rows.append(SidecarRow(pair.key, members, meta))
        return StepOutput(sidecar=SidecarOutput(batch.shard, tuple(rows)))

    # test

    @override
    def test_step(self, judged: JudgedPairs, batch_idx: int) -> None:
        """Keep rates, and the swap test: log-probability with own, placebo and no rationale."""
        drafts = [scored for pool in judged.batch.rationales for scored in pool]
        if not drafts:
            return

        own_BR, placebo_BJ = (
            log_softmax_target(score_BCR / self._fitted.tau)
            for score_BCR in (judged.scores.own_BCR, judged.scores.placebo_BCJ)
        )
        columns = {"none": own_BR[:, 0], "own": own_BR[:, 1:], "placebo": placebo_BJ}
        for name, value in columns.items():
            self._add(f"test/logp_{name}", value[~value.isnan()].tolist())

        self._add("test/keep_rate", [float(s.kept) for s in drafts])
        self._add("test/answer_mentioned", [float(bool(s.names_target)) for s in drafts])
        kept = [float(bool(s.names_target)) for s in drafts if s.kept]
        self._add("test/answer_mentioned_kept", kept)

    def _add(self, name: str, values: Sequence[float]) -> None:
        """Adds values to a mean; a name without any value is not logged."""
        if values:
            self._sums.add(name, sum(values), len(values))

    @override
    def on_test_epoch_end(self) -> None:
        # Sums: ranks may hold unequal numbers of drafts. The means are equal on all of them.
        self.log_dict(self._sums.compute(), sync_dist=True)
        self._sums.reset()

    @property
    def _fitted(self) -> Selection:
        assert self.fitted is not None  # `setup` has read it
        return self.fitted


def _rounded(value: Tensor) -> float | None:
    """Four digits, for people who read `selected/`; nothing is computed from them."""
    number = float(value)
    return None if number != number else round(number, 4)
