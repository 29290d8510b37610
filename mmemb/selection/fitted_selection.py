"""Selection: the fitted tau and eta of stage 2 (docs/method.md section 5).

Both are pure functions of a judge's scores. Shapes: B pairs, C candidates, K rationales.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, final

import msgspec
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmemb.records.precision import to_float64_device
from mmemb.records.schema import Schema, read_json
from mmemb.selection.keep_rule import KeepRule
from mmemb.selection.pair_scores import PairScores

FILE = "selection.json"


@final
class Selection(Schema):
    """A `selection.json`: the fitted tau and eta, and the rule that eta belongs to.

    Without an eta every rationale is kept.
    """

    tau: Annotated[float, msgspec.Meta(gt=0)]
    eta: float | None
    contrast: str
    min_placebo_rank: float | None
    keep_share: float
    num_hard_negatives: int = 10

    @property
    def threshold(self) -> float:
        """The threshold eta as a number; -inf if nothing was fitted."""
        return -math.inf if self.eta is None else self.eta


def fit_selection(
    calibration: Iterable[PairScores],
    pairs: Iterable[PairScores],
    rule: KeepRule,
    num_hard_negatives: int = 10,
) -> Selection:
    """Fits tau on calibration queries, then eta on train pairs.

    Args:
        calibration: scores of queries of split `calibration`, by batches.
        pairs: scores of pairs of split `train`, by batches.
        rule: the keep rule that eta is fitted for.
        num_hard_negatives: hard negatives under each path, for `margin`.

    Raises:
        ValueError: there is nothing to fit tau or eta to.
    """
    tau = fit_temperature(calibration_scores(calibration))

    # Contrasts depend on tau, so eta comes second.
    values = [rule.value(scores.contrasts(tau, num_hard_negatives)).flatten() for scores in pairs]

    return Selection(
        tau=tau,
        eta=rule.eta(torch.cat(values)) if values else None,
        **_settings(rule, num_hard_negatives),
    )


def _settings(rule: KeepRule, num_hard_negatives: int) -> dict[str, Any]:
    """Returns the settings that eta belongs to."""
    names = ("contrast", "min_placebo_rank", "keep_share")
    return {name: getattr(rule, name) for name in names} | {
        "num_hard_negatives": num_hard_negatives
    }


def calibration_scores(batches: Iterable[PairScores]) -> Tensor:
    """Collects the scores (N, C) of every path whose probability is used: none, own rationales.

    Raises:
        ValueError: there is no query.
    """
    columns = [column_BC for scores in batches for column_BC in scores.own_BCR.unbind(2)]
    # Pairs with fewer rationales than the widest of a batch have NaN columns.
    rows = [row_C for column_BC in columns for row_C in column_BC if not row_C[0].isnan()]

    if not rows:
        raise ValueError(
            "split `calibration` has no query with a rationale of the tasks that the pairs ask "
            "for, so tau cannot be fitted. Give `rationales` those of split calibration, too."
        )
    return pad_sequence(rows, batch_first=True, padding_value=-torch.inf)


def check_rule(fitted: Selection, folder: Path, rule: KeepRule, num_hard_negatives: int) -> None:
    """Raises ValueError if eta was fitted for another rule than the one that reads it."""
    for name, value in _settings(rule, num_hard_negatives).items():
        if (fitted_value := getattr(fitted, name)) != value:
            raise ValueError(
                f"{folder / FILE} was fitted with {name} {fitted_value!r}, not {value!r}: its "
                "threshold belongs to another rule. Give `fit`, `predict` and `test` the same "
                "settings, `fit` first."
            )


def read_selection(folder: Path) -> Selection:
    """Reads the `selection.json` of a folder.

    Raises:
        FileNotFoundError: nothing was fitted.
        ValueError: the file is broken.
    """
    path = folder / FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: tau and eta are not fitted yet. Run `python -m experiments.run "
            "fit` with the same config first."
        )
    return read_json(path, Selection, "Run the stage's `fit` again.", nan_is_null=True)


def fit_temperature(
    score_BC: Tensor, *, low: float = 1e-3, high: float = 1e3, tolerance: float = 1e-5
) -> float:
    """Returns the tau that makes the true target (column 0) most likely under softmax(score / tau).

    The likelihood is concave in 1 / tau, so a golden-section search over log tau finds the one
    maximum; where there is none (all right, all wrong) it ends at the nearer bound.

    Args:
        score_BC: similarities on split `calibration`; -inf pads, rows whose target is NaN are left
            out. Scores that were divided by an old tau give the factor to that tau.
        low: smallest tau.
        high: largest tau.
        tolerance: width of the bracket in log tau at which the search ends.
    """
    score_BC = to_float64_device(score_BC[~score_BC[:, 0].isnan()]).double()
    if not len(score_BC):
        raise ValueError("no score to fit a temperature to: split `calibration` is empty")

    def loss(log_tau: float) -> float:
        return -float((score_BC / math.exp(log_tau)).log_softmax(1)[:, 0].mean())

    return math.exp(_golden_section(loss, math.log(low), math.log(high), tolerance))


def _golden_section(
    function: Callable[[float], float], low: float, high: float, tolerance: float
) -> float:
    # With this ratio one of the two inner points serves the next, shorter bracket too.
    ratio = (math.sqrt(5) - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = function(left), function(right)

    while high - low > tolerance:
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = function(right)

    return (low + high) / 2
