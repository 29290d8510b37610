"""MMEB-V2 as data: 78 tasks, one row each, in published order (arXiv 2507.04590).

A new task, such as one of MMEB-V3, is a new row; `mmeb_v2_task` explains the fields of a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from mmemb.benchmarks.mmeb_v2_image import IMAGE_TASKS
from mmemb.benchmarks.mmeb_v2_task import MODALITIES, REVISIONS, Modality, Task
from mmemb.benchmarks.mmeb_v2_video import VIDEO_TASKS
from mmemb.benchmarks.mmeb_v2_visdoc import VISDOC_TASKS

TASKS: tuple[Task, ...] = (*IMAGE_TASKS, *VIDEO_TASKS, *VISDOC_TASKS)

COUNTS: Mapping[Modality, int] = {"image": 36, "video": 18, "visdoc": 24}
"""Score files that a headline needs."""

META_TASKS: tuple[str, ...] = tuple(dict.fromkeys(task.meta_task for task in TASKS))
"""Groups whose means are reported, in order."""

_OLD_SOURCES = {
    "ViDoSeek-page": "VLM2Vec/ViDoSeek-page",
    "MMLongBench-page": "VLM2Vec/MMLongBench-page",
}


def tasks_of(revision: str = REVISIONS[-1]) -> tuple[Task, ...]:
    """The benchmark with the page sets of a revision; the two are not comparable."""
    if revision not in REVISIONS:
        raise ValueError(f"revision {revision!r}: expected one of {list(REVISIONS)}.")

    if revision == REVISIONS[-1]:
        return TASKS

    # The revisions differ in two page sets; all other tasks have no revision.
    return tuple(
        replace(task, revision=revision, source=_OLD_SOURCES[task.name]) if task.revision else task
        for task in TASKS
    )


def task_named(name: str, tasks: Iterable[Task] = TASKS) -> Task:
    """The row of a task.

    Raises:
        ValueError: there is none.
    """
    tasks_by_name = {task.name: task for task in tasks}
    if name not in tasks_by_name:
        raise ValueError(f"MMEB-V2 has no task {name!r}; it has {sorted(tasks_by_name)}.")
    return tasks_by_name[name]


def groups_of(tasks: Iterable[Task] = TASKS) -> dict[str, list[str]]:
    """Group -> names of its tasks: meta-tasks, modalities, image tasks in and out of domain, all.

    A group's score is the plain mean over its tasks; so is the overall one.
    """
    groups: dict[str, list[str]] = {}
    for task in tasks:
        names = [task.meta_task, task.modality, "all"]
        if task.modality == "image":
            names.append("image-OOD" if task.out_of_domain else "image-IND")

        for name in names:
            groups.setdefault(name, []).append(task.name)
    return groups


__all__ = [
    "COUNTS",
    "META_TASKS",
    "MODALITIES",
    "REVISIONS",
    "TASKS",
    "Modality",
    "Task",
    "groups_of",
    "task_named",
    "tasks_of",
]
