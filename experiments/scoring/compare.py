"""`report compare A B ...`, `report headline`: is one model better, task by task and overall?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments.scoring.scored import (
    Model,
    check_comparable,
    differences,
    over_queries,
    over_tasks,
)
from experiments.tables import Table
from mmemb.benchmarks.headline import headline_text
from mmemb.benchmarks.score_files import read_scores


def headline(folder: Path) -> str:
    """Returns the means of a folder of score files, or a text about those that are missing."""
    return headline_text(read_scores(folder))


def compare(texts: Sequence[str]) -> str:
    """Returns tables of every model against the first, in points.

    Args:
        texts: `FOLDER` or `NAME=FOLDER,FOLDER` (seeds), two or more.

    Raises:
        ValueError: fewer than two, other data, no task in common.
    """
    if len(texts) < 2:
        raise ValueError("compare: name two or more folders of score files.")

    models = [Model.read(text) for text in texts]
    check_comparable(models)
    return "\n\n".join(_against(models[0], model) for model in models[1:])


def _against(base: Model, model: Model) -> str:
    common = [task for task in base.tasks if task in model.tasks]
    if not common:
        raise ValueError(f"{base.name} and {model.name} have no task in common.")

    # A group's mean is comparable only if both models have scored all of its tasks.
    groups = {n: tasks for n, tasks in base.groups.items() if set(tasks) <= set(common)}
    lines = [_line(task, [task], base, model) for task in common]
    lines += [_line(f"*{name}*", tasks, base, model) for name, tasks in groups.items()]

    headings = ("task", base.name, model.name, "difference", "queries drawn anew", "separable")
    table = Table(headings, lines).markdown()

    # Over all tasks if both models have them, else over those that they share.
    note = _over_tasks(base, model, groups.get("all", common))
    return f"{model.name} minus {base.name}, points\n\n{table}\n\n{note}"


def _line(title: str, tasks: Sequence[str], base: Model, model: Model) -> list[str]:
    left, right = base.mean(tasks), model.mean(tasks)
    numbers = [f"{100 * left:.2f}", f"{100 * right:.2f}", f"{100 * (right - left):+.2f}"]

    values = differences(model, base, tasks)
    if values is None:
        return [title, *numbers, "no values by query", "-"]
    interval = over_queries(model, tasks, values)

    # Too few clusters for bounds: the difference is shown, and no verdict.
    if interval.low is None:
        return [title, *numbers, interval.bounds(100, 2), "-"]
    return [title, *numbers, interval.bounds(100, 2), "yes" if interval.excludes_zero else "no"]


def _over_tasks(base: Model, model: Model, tasks: Sequence[str]) -> str:
    values = differences(model, base, tasks)
    if values is None:
        return "Published score files have no values by query: nothing can be said of chance."
    interval = over_tasks(values)
    verdict = "separable" if interval.excludes_zero else "not separable"
    return (
        f"With the {len(tasks)} tasks drawn anew as well: {100 * interval.mean:+.2f} "
        f"{interval.bounds(100, 2)}, {verdict}. An interval over queries says whether the "
        "difference would hold for other queries of these tasks, one over tasks whether for other "
        "tasks."
    )
