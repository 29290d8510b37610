"""Swap test: does a model read the words of a rationale, or only that there is one?

Source: docs/method.md section 10.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.bootstrap import cluster_bootstrap
from experiments.report.policies.comparisons import NUM_RESAMPLES
from experiments.runs.run_files import read_summary
from mmemb.records.sidecar_json import DepthValueJson
from mmemb.storage.run_folder import ExperimentFolder
from mmemb.storage.shard_index import ShardIndex


def judged_swap(experiment: Path) -> dict[str, float | None]:
    """Returns the judges' log-probabilities, from the selector's test run; empty without one."""
    return read_summary(ExperimentFolder(experiment).selection_test.path).metrics


def embedded_swap(experiment: Path) -> dict[str, Any] | None:
    """Returns the embedder's cosines on split `test`; None where no query has a placebo.

    Returns:
        `placebo` and `none`: mean with its interval over concepts, and `queries`.
    """
    index = ShardIndex.open(ExperimentFolder(experiment).depth_values)
    rows = [
        (entry.meta["concept"], *swap)
        for entry in index.entries
        if len(swap := index.read_json(entry, DepthValueJson).swap) == 2
    ]
    if not rows:
        return None

    concepts, *columns = zip(*rows, strict=True)
    means = {
        name: asdict(cluster_bootstrap(values, concepts, num_resamples=NUM_RESAMPLES))
        for name, values in zip(("placebo", "none"), columns, strict=True)
    }
    return means | {"queries": len(rows)}
