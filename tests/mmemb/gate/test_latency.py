"""Milliseconds: the mean of what was measured, and files that hold no measurement."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmemb.gate.latency import mean_latency

ROWS = [
    {"key": "a", "decided_ms": 2.0, "depth_ms": [1.0, 30.0], "tokens": [0, 8]},
    {"key": "b", "decided_ms": 4.0, "depth_ms": [2.0, 50.0], "tokens": [0, 12]},
]


def test_the_mean_is_over_queries(tmp_path: Path) -> None:
    path = tmp_path / "latency.json"
    path.write_text(json.dumps({"queries": ROWS}))
    mean, number = mean_latency(path)
    assert number == 2
    assert (mean.decided_ms, mean.depth_ms, mean.tokens) == (3.0, (1.5, 40.0), (0.0, 10.0))


def test_no_file_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"latency\.json is missing: run `experiments.run"):
        mean_latency(tmp_path / "latency.json")


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "5",
        "{}",
        '{"queries": []}',
        '{"queries": 3}',
        '{"queries": [{"key": "a", "direct_ms": 1.0, "reasoned_ms": 2.0, "tokens": 3}]}',
        json.dumps({"queries": [ROWS[0] | {"decided_ms": "fast"}]}),
        json.dumps({"queries": [ROWS[0] | {"tokens": 8}]}),
        json.dumps({"queries": [ROWS[0], ROWS[1] | {"depth_ms": [1.0]}]}),
    ],
)
def test_a_file_without_a_measurement_says_what_to_run(tmp_path: Path, content: str) -> None:
    path = tmp_path / "latency.json"
    path.write_text(content)
    words = r"latency\.json holds no live measurement: .*Delete it and run `experiments.run test`"
    with pytest.raises(ValueError, match=words):
        mean_latency(path)
