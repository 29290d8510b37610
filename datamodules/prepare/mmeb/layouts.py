"""Table of the readers of all layouts, and checks of a plan: counts and missing files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from datamodules.prepare.mmeb import image, moments, video, visdoc
from datamodules.prepare.mmeb.plan import TaskPlan
from mmemb.benchmarks.mmeb_v2 import Task

LAYOUTS: Mapping[str, Callable[[Task, Path], TaskPlan]] = {
    "image_cls": image.plan_texts,
    "image_qa": image.plan_texts,
    "image_i2t": image.plan_texts,
    "image_t2i": image.plan_pictures,
    "image_i2i_vg": image.plan_pictures,
    "video_classification": video.plan_classes,
    "ssv2": video.plan_listed_classes,
    "mvbench": video.plan_questions,
    "videomme": video.plan_questions,
    "nextqa": video.plan_questions,
    "egoschema": video.plan_questions,
    "activitynetqa": video.plan_questions,
    "didemo": video.plan_retrieval,
    "msrvtt": video.plan_retrieval,
    "msvd": video.plan_retrieval,
    "vatex": video.plan_retrieval,
    "youcook2": video.plan_retrieval,
    "moment_retrieval": moments.plan_moments,
    "momentseeker": moments.plan_momentseeker,
    "beir": visdoc.plan_pages,
    "visrag": visdoc.plan_pages,
}
"""`Task.layout` -> its reader."""

_SHORTER_LISTS = {"image_qa", "image_i2t", "image_t2i", "image_i2i_vg"}
"""Layouts with one right candidate and up to so many sampled wrong ones."""


def plan_task(task: Task, source: Path) -> TaskPlan:
    """Reads a task's annotations; sees no picture.

    Raises:
        FileNotFoundError: a repository or an archive is not there.
        ValueError: rows, columns or counts are not those of the benchmark.
    """
    plan = LAYOUTS[task.layout](task, source)
    check_counts(plan)
    return plan


def check_counts(plan: TaskPlan) -> None:
    """Compares with the registry's row."""
    task = plan.task
    _expect(task, "queries", len(plan.queries), task.num_queries)
    if task.num_candidates is None:
        return

    if not task.local:
        hint = (
            f" Class names that no query has go into {video.LABELS}, one a line (docs/mmeb_v2.md)."
            if task.layout == "video_classification"
            else ""
        )
        _expect(task, "candidates", len(plan.candidates), task.num_candidates, hint)
        return

    # A query whose frames are missing is judged by `media_problems` instead.
    whole = [q for q in plan.queries if not q.media.problem and q.candidates is not None]
    lengths = {len(query.candidates): query.where for query in whole}  # type: ignore[arg-type]
    if lengths:
        _expect(task, f"candidates ({lengths[max(lengths)]})", max(lengths), task.num_candidates)
        # Lists of these layouts may be shorter, so only the longest has a known length.
        if task.layout not in _SHORTER_LISTS:
            where = lengths[min(lengths)]
            _expect(task, f"candidates ({where})", min(lengths), task.num_candidates)


def media_problems(plan: TaskPlan) -> list[str]:
    """Lists the problems of the plan's media, as far as they show without decoding."""
    # Many sides share one clip: its problem is listed once.
    sides = [*plan.queries, *plan.candidates]
    return list(dict.fromkeys(side.media.problem for side in sides if side.media.problem))


def _expect(task: Task, what: str, count: int, wanted: int, hint: str = "") -> None:
    if count != wanted:
        raise ValueError(
            f"{task.name}: {count} {what}; expected {wanted}.{hint} Is {task.source} whole and of "
            f"the published revision? If the benchmark itself has changed, change the task's row "
            "in mmemb/benchmarks/."
        )
