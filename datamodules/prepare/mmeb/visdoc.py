"""Layouts `beir` and `visrag`: tables of queries, pages and grades; pages lie in their table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path

from datamodules.prepare.mmeb.annotations import FOLDER, Row, find_files, open_parquet, read_rows
from datamodules.prepare.mmeb.plan import Media, Picture, PlanBuilder, TaskPlan
from mmemb.benchmarks.mmeb_v2 import REVISIONS, Task, task_named, tasks_of

ID, IMAGE = "corpus-id", "image"
_GRADES = ("query-id", "corpus-id", "score")


def plan_pages(task: Task, source: Path) -> TaskPlan:
    """Reads all but the pictures; the pages come in order of the queries, the rest as stored."""
    # Checked first: the other page set would only show as a repository that is missing.
    _check_page_set(task, source)
    parts = {name: find_files(task, source, name) for name in ("queries", "corpus", "qrels")}

    builder = PlanBuilder(task, source)
    for files in parts.values():
        builder.read(files)

    grades = read_grades(read_rows(parts["qrels"], _GRADES))
    rows, twins = _pages(parts["corpus"])

    queries = list(read_rows(parts["queries"], ("query-id", "query")))
    # Pages that are asked about come first; grades may name pages that the corpus lacks.
    graded_pages = [name for query in queries for name in grades.get(query.name("query-id"), {})]

    for name in dict.fromkeys([*(name for name in graded_pages if name in rows), *rows]):
        where, row = rows[name]
        media = Media((Picture(name, row=row),))
        builder.candidate(where, name, "", media, task.target_instruction)

    for query in queries:
        relevance = grades.get(query.name("query-id"), {})
        builder.query(query.where, (), relevance, text=query.text("query"))
    return builder.finish(parts["corpus"], twins)


def read_grades(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Query -> page -> grade: those above 0, the highest where a pair occurs twice."""
    grades: dict[str, dict[str, float]] = {}
    for row in rows:
        # JSON and parquet may hold NaN, a text or a truth value here.
        score = row.values["score"]
        if type(score) not in (int, float) or not isfinite(score):
            raise row.error("a finite number in 'score'", repr(score))
        # A page of grade 0 was judged and is wrong.
        if score > 0:
            of_query = grades.setdefault(row.name("query-id"), {})
            page = row.name("corpus-id")
            of_query[page] = max(of_query.get(page, 0.0), float(score))
    return grades


def _pages(
    files: Sequence[Path],
) -> tuple[Mapping[str, tuple[str, int]], list[tuple[int, int]]]:
    """Name -> where it was read and its row, and pairs of rows that share a name."""
    first: dict[str, tuple[str, int]] = {}
    twins = []
    for path in files:
        _check_image_column(path)
    # Only ids are read: pages with pictures would fill the memory.
    for number, row in enumerate(read_rows(files, (ID,))):
        name = row.name(ID)
        if name in first:
            twins.append((first[name][1], number))
        else:
            first[name] = (row.where, number)
    return first, twins


def _check_image_column(path: Path) -> None:
    # JSON files cannot hold the pictures of a corpus.
    if path.suffix != ".parquet":
        raise ValueError(f"{path}: expected pages in a parquet file; found {path.suffix}.")
    with open_parquet(path, (ID, IMAGE)) as table:
        kind = table.schema_arrow.field(IMAGE).type

    names = {kind.field(n).name for n in range(kind.num_fields)}
    if "bytes" not in names:
        raise ValueError(
            f"{path}: column {IMAGE!r} is {kind!s:.60}; expected pictures as a structure with "
            "`bytes`, as the hub stores them. Fetch the repository's parquet files."
        )


def _check_page_set(task: Task, source: Path) -> None:
    """The page sets of ViDoSeek and MMLongBench exist twice, and their scores do not compare."""
    if not task.revision or (source / FOLDER / task.source).is_dir():
        return

    for revision in REVISIONS:
        other = task_named(task.name, tasks_of(revision)).source
        if other != task.source and (source / FOLDER / other).is_dir():
            raise ValueError(
                f"{task.name}: {source / FOLDER} holds {other}, the page set of {revision}, and "
                f"not {task.source}, that of {task.revision}. Fetch the latter, or pass "
                f"--revision {revision}; scores of the two do not compare."
            )
