"""Gates that a report fits: the same on every run, different from seed to seed."""

from __future__ import annotations

import pytest
import torch

from experiments.report.policies.gates import fitted_logits
from mmemb.records.batches import DepthValueBatch
from mmemb.records.gate_state import GateInputs


def test_a_gate_of_a_report_depends_on_its_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.report.policies.gates.NUM_STEPS", 1)
    random = torch.Generator().manual_seed(0)
    inputs = GateInputs(torch.randn(6, 4, generator=random), torch.zeros(6, 3), torch.zeros(6, 0))
    depth_value, cost = torch.randn(6, 2, generator=random), torch.tensor([[0.0, 9.0]]).repeat(6, 1)
    batch = DepthValueBatch(
        tuple("abcdef"), ({},) * 6, inputs, depth_value, cost, torch.ones(6, dtype=torch.bool)
    )
    parts, gate = {"gate": batch, "test": batch}, {"clip": 3.0, "token_cost": 0.0, "head": {}}

    found = []
    for process, seed in ((1, 0), (2, 0), (2, 1)):
        torch.manual_seed(process)  # where a process stands in its own random numbers
        found.append(fitted_logits(parts, ("embedding",), gate, "supervised", seed))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])
