"""CounterfactualSelector: stage 2, which rationales really help their pair (METHOD 5).

Shapes: B pairs, C candidates (the target first), R columns (none, then rationales), K rationales,
J donors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, final

import msgspec
import torch
from lightning.pytorch import LightningModule
from msgspec.structs import replace
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.optim import Optimizer
from typing_extensions import override

from mmemb.distributed import gather_objects
from mmemb.records.batches import PairRowBatch
from mmemb.records.outputs import SidecarOutput, SidecarRow, StepOutput
from mmemb.records.rationales import scored_to_json
from mmemb.records.schema import Schema, read_json
from mmemb.retrieval.running_means import MeanSums
from mmemb.selection import PairEvaluator
from mmemb.selection.counterfactual import (
    contrasts,
    fit_temperature,
    keep,
    keep_threshold,
    names_target,
    pair_score,
    weights,
)
from mmemb.selection.placebos import apart, comparable, placebo_donors
from mmemb.storage.json_files import write_json

Contrast = Literal["raw", "gain", "positive", "margin", "placebo_rank"]


@final
@dataclass(frozen=True, slots=True)
class _Scores:
    """Scores of a batch at tau 1.

    Attributes:
        score_BCR: columns are none, then K own rationales, then J donors' ones.
        comparable_BKJ: bool, whether an own rationale may be ranked among a donor's one.
    """

    score_BCR: Tensor
    comparable_BKJ: Tensor

    @property
    def own_BCR(self) -> Tensor:
        """None and the own rationales."""
        return self.score_BCR[:, :, : 1 + self.comparable_BKJ.shape[1]]

    @property
    def foreign_BCJ(self) -> Tensor:
        """The donors' rationales."""
        return self.score_BCR[:, :, 1 + self.comparable_BKJ.shape[1] :]


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
        num_donors: foreign rationales per pair, worker and depth, for the placebo rank and the swap
            test.
        num_hard: hard negatives under each path, for `margin`.
    """

    # Judges choose among rationales; weights are trained on the rationales alone.
    CALIBRATION_KEYS: ClassVar[frozenset[str]] = frozenset({"evaluator", "selection"})

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
        if not 0 <= keep_share <= 1:  # here, since eta is found after all judging
            raise ValueError(f"keep_share {keep_share}: expected a share between 0 and 1.")
        self.evaluator = evaluator
        self.selection = Path(selection)
        self.contrast, self.keep_share = contrast, keep_share
        self.min_placebo_rank, self.weight_temperature = min_placebo_rank, weight_temperature
        self.num_donors, self.num_hard = num_donors, num_hard
        self.automatic_optimization = False  # nothing is trained by gradient here,
        self.unused = nn.Parameter(torch.zeros(1))  # but DDP refuses a module without parameters
        self._train_scores: list[_Scores] = []
        self._calibration_scores: list[Tensor] = []
        self._sums = MeanSums()
        self.tau: float | None = None
        self.eta = 0.0

    @override
    def setup(self, stage: str) -> None:
        if stage in {"predict", "test"}:
            fitted = read_selection(self.selection)
            self.tau = fitted.tau
            self.eta = -math.inf if fitted.eta is None else fitted.eta
            self._check_rule(fitted)

    def _rule(self) -> dict[str, Any]:
        """What eta was fitted for."""
        names = ("contrast", "min_placebo_rank", "keep_share")
        return {name: getattr(self, name) for name in names}

    def _check_rule(self, fitted: Selection) -> None:
        for name, value in self._rule().items():
            if (found := getattr(fitted, name)) != value:
                raise ValueError(
                    f"{self.selection}/selection.json was fitted with {name} {found!r}, not "
                    f"{value!r}: its threshold belongs to another rule. Give `fit`, `predict` and "
                    "`test` the same settings, `fit` first."
                )

    # fit

    @override
    def training_step(self, batch: PairRowBatch, batch_idx: int) -> None:
        if batch.pairs:
            self._train_scores.append(self._score(batch))

    @override
    def validation_step(self, batch: PairRowBatch, batch_idx: int) -> None:
        # Every path that will be asked for a probability: without, and with the own rationale.
        self._calibration_scores.extend(self._score(batch).own_BCR.unbind(2))

    @override
    def on_validation_epoch_end(self) -> None:
        columns = gather_objects(self._calibration_scores)  # by all ranks, also one without any
        self._calibration_scores = []
        if self.trainer.sanity_checking:
            return
        rows = [row for column in columns for row in column if not row[0].isnan()]
        if not rows:
            raise ValueError(
                "part `calibration` has no query with a rationale of the tasks that the pairs ask "
                "for, so tau cannot be fitted: give `rationales` those of part calibration, too."
            )
        score_BC = pad_sequence(rows, batch_first=True, padding_value=-torch.inf)
        self.tau = fit_temperature(score_BC)
        self.log("val/tau", self.tau, sync_dist=True)

    @override
    def on_train_epoch_end(self) -> None:
        found = [self._chosen_by(self._contrasts(s)).flatten() for s in self._train_scores]
        self.eta = keep_threshold(torch.cat(gather_objects(found)), self.keep_share)
        self.log("train/eta", self.eta, sync_dist=True)

    @override
    def on_train_end(self) -> None:
        if self.trainer.is_global_zero:
            (path,) = self.products("fit")
            write_json(path, {"tau": self.tau, "eta": self.eta} | self._rule())

    def products(self, stage: str) -> list[Path]:
        """The fitted tau and eta; see `mmemb.storage.products.Producer`."""
        return [Path(self.trainer.default_root_dir) / "selection.json"] if stage == "fit" else []

    @override
    def configure_optimizers(self) -> list[Optimizer]:
        return []

    # predict

    @override
    def predict_step(
        self, batch: PairRowBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> StepOutput:
        found = self._contrasts(self._score(batch))
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
            meta |= {"fact": pair.fact, **batch.mark(row)}
            rows.append(SidecarRow(pair.key, members, meta))
        return StepOutput(sidecar=SidecarOutput(batch.shard, tuple(rows)))

    # test

    @override
    def test_step(self, batch: PairRowBatch, batch_idx: int) -> None:
        """Keep rates, and the swap test: log-probability with own, foreign and no rationale."""
        candidates = [scored for pool in batch.rationales for scored in pool]
        if not candidates:
            return
        scores = self._score(batch)
        own_BR, foreign_BJ = (
            (score / self._fitted_tau).log_softmax(1)[:, 0]
            for score in (scores.own_BCR, scores.foreign_BCJ)
        )
        columns = {"none": own_BR[:, 0], "own": own_BR[:, 1:], "foreign": foreign_BJ}
        for name, value in columns.items():
            known = value[~value.isnan()]
            if len(known):
                self._log_mean(f"test/swap_{name}", known.tolist())
        self._log_mean("test/keep_rate", [float(s.kept) for s in candidates])
        self._log_mean("test/names_target", [float(bool(s.names_target)) for s in candidates])
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
    def _score(self, batch: PairRowBatch) -> _Scores:
        own = [[scored.rationale for scored in pool] for pool in batch.rationales]
        donors = [placebo_donors(batch.pairs, own, row, self.num_donors) for row in range(len(own))]
        queries = [pair.query for pair in batch.pairs]
        facts = [pair.fact for pair in batch.pairs]
        # One call for both: a judge that shares what it has read reads a pair once.
        every = [[*ours, *theirs] for ours, theirs in zip(own, donors, strict=True)]
        score_BCR = self.evaluator.score(queries, batch.candidates, every, facts).cpu()
        for row, pair in enumerate(batch.pairs):  # later NaN means that there is no rationale
            if not score_BCR[row, 0, : 1 + len(every[row])].isfinite().all():
                raise ValueError(
                    f"{pair.key}: scores of the {type(self.evaluator).__name__} are not finite, so "
                    "its model is broken or overflows. Try another dtype, or train it again."
                )
        alike_BKJ = comparable(own, donors)
        return _Scores(apart(score_BCR, list(map(len, own)), alike_BKJ.shape[1:]), alike_BKJ)

    def _contrasts(self, scores: _Scores) -> Mapping[str, Tensor]:
        kind = self.evaluator.kind
        placebo_BJ = pair_score(scores.foreign_BCJ / self._fitted_tau, kind)
        placebo_BKJ = placebo_BJ[:, None].masked_fill(~scores.comparable_BKJ, torch.nan)
        if not placebo_BKJ.shape[2]:  # a last batch of one pair has no donors: its rank is NaN
            placebo_BKJ = placebo_BKJ.new_full((*placebo_BKJ.shape[:2], 1), torch.nan)
        own_BCR = scores.own_BCR / self._fitted_tau
        return contrasts(own_BCR, kind=kind, num_hard=self.num_hard, placebo_BKJ=placebo_BKJ)

    @property
    def _fitted_tau(self) -> float:
        if self.tau is None:
            raise ValueError("tau was not fitted: `fit` needs its validation on part calibration.")
        return self.tau

    def _chosen_by(self, found: Mapping[str, Tensor]) -> Tensor:
        """(B, K) the contrast, lowest of all where too few placebos are beaten (METHOD 5: the rank,
        together with the gain). Without donors nobody is beaten, and nobody beats."""
        below_BK = found["placebo_rank"] < self.min_placebo_rank
        return found[self.contrast].masked_fill(below_BK, -torch.inf)


@final
class Selection(Schema):
    """A `selection.json`: the fitted tau and eta, and the rule that eta belongs to.

    Without an eta every candidate is kept.
    """

    tau: Annotated[float, msgspec.Meta(gt=0)]
    eta: float | None
    contrast: str
    min_placebo_rank: float | None
    keep_share: float


def read_selection(folder: Path) -> Selection:
    """Reads the fitted tau and eta, and the rule that eta belongs to.

    Raises:
        FileNotFoundError: nothing was fitted.
        ValueError: the file is broken.
    """
    path = folder / "selection.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: tau and eta are not fitted yet. Run `python -m experiments.run "
            "fit` with the same config first."
        )
    return read_json(path, Selection, "Run the stage's `fit` again.", nan_is_null=True)


def _rounded(value: Tensor) -> float | None:
    number = float(value)
    return None if number != number else round(number, 4)
