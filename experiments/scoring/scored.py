"""Models as their score files tell of them: one or several seeds, and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self, final

import numpy as np
from numpy.typing import NDArray

from experiments.bootstrap import Interval, cluster_bootstrap
from mmemb.benchmarks.headline import check_alike, headline_metrics, known_groups
from mmemb.benchmarks.mmeb_v2 import TASKS
from mmemb.benchmarks.score_files import ScoreFile, Values, read_scores, read_values

Floats = NDArray[np.float64]

NUM_RESAMPLES = 4_000


@final
@dataclass(frozen=True)  # no slots: cached properties
class Model:
    """Score files of one model.

    Attributes:
        name: as tables call it.
        files: of every seed, task -> score file.
        values: of every seed, task -> the headline metric query by query; empty for published
            files, which lack them.
    """

    name: str
    files: tuple[Mapping[str, ScoreFile], ...]
    values: tuple[Mapping[str, Values], ...]

    @classmethod
    def read(cls, text: str) -> Self:
        """Reads `FOLDER`, or `NAME=FOLDER,FOLDER...` with a folder for each seed."""
        name, _, folders = text.rpartition("=")
        paths = [Path(folder) for folder in folders.split(",") if folder]
        if not paths:
            raise ValueError(f"{text!r} names no folder: expected FOLDER, or NAME=FOLDER,FOLDER...")

        files = tuple(read_scores(path) for path in paths)
        for score_files in files:
            check_alike(score_files)
        return cls(name or folders, files, tuple(read_values(path) for path in paths))

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """Tasks that every seed has scored whole, in order."""
        # A partial score leaves out queries, so its mean is one of other queries.
        whole = [
            {name for name, f in score_files.items() if not f.partial} for score_files in self.files
        ]
        return tuple(name for name in self.files[0] if all(name in names for names in whole))

    @cached_property
    def revision(self) -> str:
        """Revision of the data; "" where the files do not say."""
        revisions = {f.provenance.get("revision", "") for seed in self.files for f in seed.values()}
        return max(revisions)

    @cached_property
    def scores(self) -> dict[str, float]:
        """Task -> headline metric, mean over seeds."""
        metrics = [headline_metrics(score_files) for score_files in self.files]
        return {name: float(np.mean([m[name] for m in metrics])) for name in self.tasks}

    @cached_property
    def groups(self) -> dict[str, list[str]]:
        """Group -> its tasks, of those groups that are complete."""
        groups = known_groups(self.files[0])
        return {n: tasks for n, tasks in groups.items() if set(tasks) <= set(self.tasks)}

    def of_task(self, task: str) -> Floats | None:
        """Returns (S, N) values of a task, seed by seed; None if they were not kept."""
        seeds = [seed.get(task) for seed in self.values]
        if any(values is None for values in seeds):
            return None
        return np.array([values.values for values in seeds if values is not None])

    def mean(self, tasks: Sequence[str]) -> float:
        """Returns the plain mean of tasks."""
        return float(np.mean([self.scores[task] for task in tasks]))

    def interval(self, tasks: Sequence[str]) -> Interval | None:
        """Returns the mean of tasks, queries resampled by their clusters; None without values."""
        columns = [self.of_task(task) for task in tasks]
        if any(column is None for column in columns):
            return None
        return over_queries(self, tasks, [column for column in columns if column is not None])


def check_comparable(models: Sequence[Model]) -> None:
    """Refuses models that were scored on other data, or graded tasks in two modes: the published
    evaluator treats grades in its own way, and nothing else.

    Raises:
        ValueError: data revisions or modes differ.
    """
    revisions = {model.name: model.revision for model in models if model.revision}
    graded = {task.name for task in TASKS if task.graded}

    # Only graded tasks depend on the mode: a mixture elsewhere does no harm.
    modes = {m.name: f.mode for m in models for n, f in m.files[0].items() if n in graded}

    for what, values in (("data revisions", revisions), ("modes in graded tasks", modes)):
        if len(set(values.values())) > 1:
            raise ValueError(
                f"These models are not comparable, their {what} differ: {values}. Score them alike."
            )


def differences(left: Model, right: Model, tasks: Sequence[str]) -> list[Floats] | None:
    """Returns (N,) of each task, left minus right, query by query, seeds averaged.

    Raises:
        ValueError: the two have other queries.
    """
    values = []
    for task in tasks:
        ours, theirs = left.of_task(task), right.of_task(task)
        if ours is None or theirs is None:
            return None

        if left.values[0][task].keys != right.values[0][task].keys:
            raise ValueError(
                f"{left.name} and {right.name} have other queries in {task}: score both on the "
                "same data."
            )

        values.append(ours.mean(0) - theirs.mean(0))
    return values


def over_tasks(difference: Sequence[Floats]) -> Interval:
    """Returns the same mean when tasks are drawn anew: does it hold for tasks like these?"""
    means = [float(np.mean(values)) for values in difference]
    return cluster_bootstrap(means, range(len(means)), num_resamples=NUM_RESAMPLES)


def over_queries(model: Model, tasks: Sequence[str], columns: Sequence[Floats]) -> Interval:
    """Returns the mean over tasks of values, when queries are drawn anew and tasks stay."""
    seeds = [np.atleast_2d(column) for column in columns]

    # A task's weight must not grow with its queries, hence the names beside the values.
    names = [task for task, column in zip(tasks, seeds, strict=True) for _ in column[0]]
    clusters = [name for task in tasks for name in model.values[0][task].clusters]

    value_SN = np.concatenate(seeds, axis=1)
    return cluster_bootstrap(value_SN, clusters, tasks=names, num_resamples=NUM_RESAMPLES)
