"""The JSON file that a leaderboard takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmemb.benchmarks.score_files import ScoreFile


def submission(
    score_files: Mapping[str, ScoreFile],
    modality_of: Mapping[str, str],
    metadata: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns a leaderboard's form: metadata, and the published keys by modality and task.

    Raises:
        ValueError: a task is partial or missing.
    """
    if missing := [name for name in modality_of if name not in score_files]:
        raise ValueError(f"{len(missing)} tasks are missing: {', '.join(missing)}.")

    # A mean over some of the queries is not comparable with those of a leaderboard.
    if partial := [name for name in modality_of if score_files[name].partial]:
        raise ValueError(f"{len(partial)} tasks are partial: {', '.join(partial)}.")

    metrics: dict[str, dict[str, Any]] = {}
    for name, modality in modality_of.items():
        metrics.setdefault(modality, {})[name] = dict(score_files[name].scores)
    return {"metadata": dict(metadata), "metrics": metrics}
