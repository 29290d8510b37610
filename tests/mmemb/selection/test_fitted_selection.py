"""The fitted temperature, against scores of a known one."""

from __future__ import annotations

import math

import pytest
import torch

from mmemb.selection.fitted_selection import fit_temperature

NAN, INF = math.nan, math.inf


def test_fitted_temperature_is_the_one_that_drew_the_targets() -> None:
    generator = torch.Generator().manual_seed(0)
    score = torch.randn(20_000, 6, generator=generator)
    target = torch.multinomial((score / 0.3).softmax(1), 1, generator=generator)
    score = torch.cat([score.gather(1, target), score.scatter(1, target, -INF)], 1)
    assert fit_temperature(score) == pytest.approx(0.3, rel=0.03)
    with_padding = torch.cat([score, torch.full((1, 7), NAN)])
    assert fit_temperature(with_padding) == pytest.approx(fit_temperature(score))


def test_fitted_temperature_at_the_bounds() -> None:
    right = torch.tensor([[1.0, 0.0]])
    assert fit_temperature(right) < 0.1
    assert fit_temperature(-right) == pytest.approx(1e3, rel=1e-3)
    with pytest.raises(ValueError, match="calibration"):
        fit_temperature(torch.empty(0, 3))
