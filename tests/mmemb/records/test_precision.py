"""Whatever needs float64 is computed on the CPU for tensors of a device that has none."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from callbacks.invocation import InvocationMeter
from mmemb.gate.policy_gradients import _sample
from mmemb.llm.decoding.sampling import Sampling, choose_tokens
from mmemb.records import precision
from mmemb.records.gate_state import score_shape
from mmemb.retrieval.exact_search import plain_top
from mmemb.retrieval.ranking import check_unit, rank_positives, rank_scores, search
from mmemb.retrieval.ranking_metrics import expected_metrics
from mmemb.selection.fitted_selection import fit_temperature
from tests.fixtures.without_float64 import DEVICE, OnDevice, WithoutFloat64

VECTORS = torch.nn.functional.normalize(
    torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
)
NOISE = torch.rand(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
RIGHT = [[1], [2, 3], [0], [4], [5], [1]]


def _tokens(logits_RV: Tensor) -> Tensor:
    sampled_R = torch.ones(6, dtype=torch.bool)
    return torch.stack(choose_tokens(logits_RV, NOISE[:, 0], sampled_R, Sampling(4, 1.0, 0.9, 3)))


def _invocations(depths_B6: Tensor) -> Tensor:
    meter = InvocationMeter()
    meter.update(depths_B6[:, 0], depths_B6[:, 1], depths_B6[:, 2] > 0)
    return torch.tensor(list(meter.compute().values()))


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "rank_positives": lambda x: rank_positives(x, x, RIGHT).greater_QP,
    "rank_positives of no query": lambda x: rank_positives(x[:0], x, []).greater_QP,
    "search": lambda x: search(x, x, 3)[0],
    "search in lists": lambda x: search(x, x, 3, local_QC=RIGHT)[0],
    "plain_top": lambda x: plain_top(x, x, 2, 1e-9)[0],
    "metrics": lambda x: expected_metrics(rank_scores(x, (x > 9).long()))["recall@5"],
    "check_unit": lambda x: check_unit(x, "vectors") or torch.zeros(1),
    "score_shape": score_shape,
    "fit_temperature": lambda x: torch.tensor(fit_temperature(x)),
    "choose_tokens": _tokens,
    "actions": lambda x: _sample(x.log_softmax(1), NOISE),
    "InvocationMeter": _invocations,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_device_without_float64_gives_what_the_cpu_gives(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "WITHOUT_FLOAT64", {DEVICE.type})
    with WithoutFloat64():
        found = FUNCTIONS[name](OnDevice(VECTORS)).cpu()
    torch.testing.assert_close(found, FUNCTIONS[name](VECTORS), rtol=0, atol=0)


def test_such_a_device_refuses_float64() -> None:
    """So that the tests above can fail."""
    with WithoutFloat64(), pytest.raises(TypeError, match="float64"):
        OnDevice(VECTORS).double()
