"""The files in which a run describes itself: seconds and metrics, commit and versions."""

from __future__ import annotations

from pathlib import Path
from typing import final

from mmemb.records.schema import Excerpt, Schema, read_json
from mmemb.storage.run_folder import RunFolder


@final
class SavedWeights(Schema):
    """The step whose weights a fit has left; see `callbacks.SelectedWeights`."""

    select: str
    step: int
    metric: str = ""
    value: float | None = None
    checkpoint: str = ""


@final
class RunSummary(Schema):
    """A `summary.json`; a metric that was not finite is None."""

    seconds: float | None = None
    weights: SavedWeights | None = None
    metrics: dict[str, float | None] = {}


@final
class RunEnvironment(Excerpt):
    """The fields of an `environment.json` that are read."""

    git_commit: str | None = None
    uncommitted_changes: bool = False
    owner: str | None = None
    tags: tuple[str, ...] = ()
    versions: dict[str, str] = {}


def read_summary(run: Path) -> RunSummary:
    """The summary of a run; empty where it has none."""
    path = RunFolder(run).summary
    return read_json(path, RunSummary, nan_is_null=True) if path.is_file() else RunSummary()


def read_environment(run: Path) -> RunEnvironment:
    """The environment of a run; empty where it has none."""
    path = RunFolder(run).environment
    return read_json(path, RunEnvironment) if path.is_file() else RunEnvironment()
