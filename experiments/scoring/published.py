"""`report table`: models side by side by group, ready for a paper; bold only where separable."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from experiments.scoring.scored import Model, check_comparable, differences, over_queries
from experiments.tables import Table
from mmemb.benchmarks.mmeb_v2 import META_TASKS, MODALITIES

Format = Literal["latex", "md", "csv"]

COLUMNS = (*META_TASKS, *MODALITIES, "all")


def table(texts: Sequence[str], baselines: Path | None = None, form: Format = "md") -> str:
    """Returns a row for each model, a column for each group that some model has complete.

    Args:
        texts: `FOLDER` or `NAME=FOLDER,FOLDER` (seeds).
        baselines: a folder with a folder of score files for each published model.
        form: `latex`, `md` or `csv`.
    """
    named = [] if baselines is None else sorted(p for p in baselines.iterdir() if p.is_dir())
    models = [Model.read(f"{path.name}={path}") for path in named]
    models += [Model.read(text) for text in texts]

    # A table puts numbers side by side, so all must be of the same data.
    check_comparable(models)
    columns = [name for name in COLUMNS if any(name in model.groups for model in models)]
    best = {name: separable_best(models, name) for name in columns}
    bold = {"latex": r"\textbf{%s}", "md": "**%s**", "csv": "%s"}[form]

    rows = [
        [
            model.name,
            *(_cell(model, name, bold if best[name] is model else "%s") for name in columns),
        ]
        for model in models
    ]
    return {"latex": _latex, "md": _markdown, "csv": _csv}[form](["model", *columns], rows)


def separable_best(models: Sequence[Model], group: str) -> Model | None:
    """Finds the best model of a group, if its lead over every other one is more than chance.

    None where values by query are missing: published files do not have them.
    """
    having = [model for model in models if group in model.groups]
    if len(having) < 2:
        return None

    # Bold means separable from every other model, not only the highest number.
    first = max(having, key=lambda model: model.mean(model.groups[group]))
    for other in having:
        tasks = first.groups[group]
        leads = differences(first, other, tasks) if other is not first else []
        if leads is None or (leads and not over_queries(first, tasks, leads).is_above(0)):
            return None
    return first


def _cell(model: Model, group: str, bold: str) -> str:
    if group not in model.groups:
        return "-"

    tasks = model.groups[group]
    shown = bold % f"{100 * model.mean(tasks):.1f}"

    interval = model.interval(tasks)
    if interval is None:
        return shown
    return f"{shown} {interval.bounds(100, 1)}"


def _markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return Table(headings, rows).markdown()


def _csv(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([headings, *rows])
    return buffer.getvalue().rstrip("\n")


def _latex(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [
        r"\begin{tabular}{l" + "r" * (len(headings) - 1) + "}",
        r"\toprule",
        " & ".join(map(_escaped, headings)) + r" \\",
        r"\midrule",
        *(" & ".join([_escaped(row[0]), *row[1:]]) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines)


def _escaped(text: str) -> str:
    for character in "_&%#":
        text = text.replace(character, f"\\{character}")
    return text
