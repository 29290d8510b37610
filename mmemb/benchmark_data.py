"""What is right in a prepared benchmark: queries, labels and candidate lists, without a picture.

Reads the shards' JSON and candidate lists alone, so that scores need neither a model nor a decoder.
`parse_query` is the one reader of grades and lists: the data modules read theirs through it, too.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from mmemb.metrics import checked_grade
from mmemb.records import EvaluationTask, Media, Query, Side, from_json
from mmemb.shards import MANIFEST, IndexEntry, ShardIndex

TASKS, QUERIES, CANDIDATES = "tasks.json", "queries", "candidates"

REPEATS = "repeats"
"""Field of a query's JSON: how many entries of its candidate list repeat an earlier one."""


@final
@dataclass(frozen=True, slots=True)
class BenchmarkRoot:
    """One data root.

    Attributes:
        path: below the benchmark's folder, `.` if it is the only one.
        tasks: that it holds.
        queries: of part `test`, in the order of the data.
        name_of_row: candidate table row -> gallery and name.
        revision: of the data, where its converter knows of several.
        left_out: why rows are missing, if `prepare` left some out.
        content: hash of all queries and candidates, see `content_of`.
    """

    path: str
    tasks: tuple[EvaluationTask, ...]
    queries: tuple[Query, ...]
    name_of_row: tuple[tuple[str, str], ...]
    revision: str = ""
    left_out: str = ""
    content: str = ""

    def names(self, gallery: str) -> list[str]:
        """Each name of a gallery once, in the order of the table."""
        return list(dict.fromkeys(name for home, name in self.name_of_row if home == gallery))


def roots_below(folder: Path) -> list[Path]:
    """Every data root at or below a folder, in order of path; links are followed.

    Raises:
        FileNotFoundError: there is none.
    """
    walk = os.walk(folder, followlinks=True)
    if not (found := sorted(Path(path) for path, _, files in walk if TASKS in files)):
        raise FileNotFoundError(
            f"{folder} holds no {TASKS}, nor does a folder below it: run `python -m "
            "datamodules.prepare` first, or name the folder that it wrote."
        )
    return found


def read_benchmark(folder: Path, part: str = "test") -> Iterator[BenchmarkRoot]:
    """Reads every root at or below a folder, in order of path; see `roots_below`.

    Raises:
        ValueError: a sample is broken, its index differs from it, or a right or listed candidate is
            not among those that the query chooses from.
    """
    for root in roots_below(folder):
        tasks = parse_tasks(_json(root / TASKS))
        index, table = (ShardIndex.open(root / name) for name in (QUERIES, CANDIDATES))
        entries = [entry for entry in index.entries if entry.meta["part"] == part]
        queries = tuple(_query(index, entry) for entry in entries)
        names = tuple(_gallery_and_name(table, entry) for entry in table.entries)

        _check_candidates(root, tasks, queries, names)
        path = str(root.relative_to(folder))
        origin = (*revision_and_losses(root), content_of(index, table))
        yield BenchmarkRoot(path, tasks, queries, names, *origin)


def content_of(queries: ShardIndex, candidates: ShardIndex) -> str:
    """Hash (16 hex digits) of the bytes of a root: saved vectors belong to one of them."""
    both = queries.origin().sha256 + candidates.origin().sha256
    return hashlib.sha256(both.encode()).hexdigest()[:16]


def parse_tasks(rows: Sequence[Mapping[str, Any]]) -> tuple[EvaluationTask, ...]:
    """The rows of `tasks.json`, each task once.

    Raises:
        ValueError: a row is no task, or a task stands twice.
    """
    tasks = tuple(from_json(EvaluationTask, row) for row in rows)
    names = [task.name for task in tasks]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ValueError(f"task {twice[0]!r} stands twice in {TASKS}: expected every task once.")
    return tasks


def parse_query(
    key: str,
    data: Mapping[str, Any],
    meta: Mapping[str, str],
    side: Side,
    listed: NDArray[Any] | None,
) -> Query:
    """A query from its JSON.

    Args:
        key: of the sample.
        data: the JSON.
        meta: of the sample's index entry; empty where there is no index.
        side: its content.
        listed: rows of its own candidates in the candidate table; None = the whole gallery.

    Raises:
        ValueError: no right candidate, a grade that is not above 0, an index that differs, a list
            that is no list of rows or that repeats a candidate without stating it.
        KeyError: a field is missing.
    """
    check_index(data, meta)
    if not isinstance(data["relevance"], dict) or not data["relevance"]:
        raise ValueError("relevance names no right candidate: expected names with their grades.")

    grades = {
        name: checked_grade(grade, f"right candidate {name!r}")
        for name, grade in data["relevance"].items()
    }
    return Query(
        key=key,
        **{name: data[name] for name in ("task", "part", "concept", "fact")},
        side=side,
        relevance=grades,
        answers=tuple(data["answers"]),
        candidates=None if listed is None else _listed_rows(listed, data.get(REPEATS, 0)),
        gallery=meta.get("gallery", ""),
    )


def check_index(data: Mapping[str, Any], meta: Mapping[str, str]) -> None:
    """Refuses a sample whose index entry and JSON disagree in a field that both have.

    Raises:
        ValueError: names the field and both values.
    """
    for name, stated in meta.items():
        if name in data and data[name] != stated:
            raise ValueError(
                f"the index says {name} {stated!r}, the json {data[name]!r}: expected the same in "
                "both."
            )


def _listed_rows(listed: NDArray[Any], num_repeats: int) -> tuple[int, ...]:
    """Rows of a list of candidates; published lists may repeat one, and then state how often."""
    if listed.ndim != 1 or listed.dtype.kind not in "iu" or not listed.size:
        raise ValueError(
            f"candidates.npy holds {listed.dtype} {listed.shape}: expected a list of whole numbers."
        )

    rows = tuple(int(row) for row in listed)
    if min(rows) < 0:
        raise ValueError(f"candidates.npy lists row {min(rows)}: expected rows from 0.")
    if (repeats := len(rows) - len(set(rows))) != num_repeats:
        raise ValueError(
            f"candidates.npy repeats {repeats} rows, the json states {num_repeats} as {REPEATS!r}: "
            "expected every candidate once unless the published list repeats some."
        )
    return rows


def _check_candidates(
    root: Path,
    tasks: Sequence[EvaluationTask],
    queries: Sequence[Query],
    names: Sequence[tuple[str, str]],
) -> None:
    """Refuses queries whose task, right candidates or listed rows the root does not have."""
    gallery_of = {task.name: task.gallery for task in tasks}
    places = set(names)
    for query in queries:
        where = f"{root / QUERIES}, sample {query.key}"
        if gallery_of.get(query.task) != query.gallery:
            raise ValueError(
                f"{where} is of task {query.task!r} and gallery {query.gallery!r}, which {TASKS} "
                "does not have together; prepare the data again."
            )

        # A negative or a foreign row would silently name another candidate.
        rows = query.candidates or ()
        if wrong := [r for r in rows if r >= len(names) or names[r][0] != query.gallery]:
            raise ValueError(
                f"{where}: candidates.npy lists row {wrong[0]}, which gallery {query.gallery!r} "
                "does not have; prepare the data again."
            )

        among = {names[row] for row in rows} if rows else places
        if lost := [name for name in query.relevance if (query.gallery, name) not in among]:
            raise ValueError(
                f"{where}: right candidate {lost[0]!r} is not among the candidates that the query "
                "chooses from; prepare the data again."
            )


def revision_and_losses(root: Path) -> tuple[str, str]:
    """What the manifest of a root says: the data's revision, and why rows are missing."""
    path = root / MANIFEST
    stated = _json(path) if path.is_file() else {}
    skipped = stated.get("skipped") or []
    why = f"{len(skipped)} rows left out by prepare" if stated.get("partial") else ""
    return str(stated.get("revision") or ""), why


def _query(index: ShardIndex, entry: IndexEntry) -> Query:
    members = index.read(entry, {"json", "candidates.npy"})
    try:
        data = json.loads(members["json"])
        listed = members.get("candidates.npy")
        media = tuple(Media("image", digest) for digest in entry.media.values())
        return parse_query(
            entry.key,
            data,
            entry.meta,
            Side(data["text"], data["instruction"], media),
            None if listed is None else np.load(io.BytesIO(listed), allow_pickle=False),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise _broken(index, entry, "query", error) from None


def _gallery_and_name(table: ShardIndex, entry: IndexEntry) -> tuple[str, str]:
    """Gallery and name of a candidate, which are equal in its index and its JSON."""
    try:
        data = json.loads(table.read(entry, {"json"})["json"])
        check_index(data, entry.meta)
        return data["gallery"], data["name"]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise _broken(table, entry, "candidate", error) from None


def _broken(index: ShardIndex, entry: IndexEntry, what: str, error: Exception) -> ValueError:
    where = f"{index.folder / entry.shard}, sample {entry.key}"
    words = str(error) if type(error) is ValueError else repr(error)
    return ValueError(f"{where} is no {what}: {words} Prepare the data again.")


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}; prepare the data again.") from None
