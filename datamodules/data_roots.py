"""The truth of a prepared benchmark: queries, labels and candidate lists, without a picture.

Reads the shards' JSON and candidate lists alone, so that scores need neither a model nor a decoder.
`parse_query` is the one reader of grades and lists: the data modules read theirs through it, too.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from datamodules.sample_json import CandidateJson, QueryJson, check_index
from mmemb.records.counted_nouns import counted
from mmemb.records.inputs import Media, Side
from mmemb.records.pairs import EvaluationTask, Query
from mmemb.records.schema import Excerpt, read_json
from mmemb.storage.manifests import MANIFEST, IndexEntry
from mmemb.storage.shard_index import ShardIndex

TASKS, QUERIES, CANDIDATES = "tasks.json", "queries", "candidates"

_PREPARE = "Prepare the data again."

REPEATS = "repeats"
"""Field of a query's JSON: how many entries of its candidate list repeat an earlier one."""


@final
@dataclass(frozen=True, slots=True)
class BenchmarkRoot:
    """One data root.

    Attributes:
        path: below the benchmark's folder, `.` if it is the only one.
        tasks: that it holds.
        queries: of split `test`, in the order of the data.
        name_of_row: candidate table row -> gallery and name.
        revision: of the data, where its converter has several.
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
    if not (roots := sorted(Path(path) for path, _, files in walk if TASKS in files)):
        raise FileNotFoundError(
            f"{folder} holds no {TASKS}, nor does a folder below it: run `python -m "
            "datamodules.prepare` first, or name the folder that it wrote."
        )
    return roots


def read_benchmark(folder: Path, split: str = "test") -> Iterator[BenchmarkRoot]:
    """Reads every root at or below a folder, in order of path; see `roots_below`.

    Raises:
        ValueError: a sample is broken, its index differs from it, or a right or listed candidate is
            not among those that the query chooses from.
    """
    for root in roots_below(folder):
        tasks = read_tasks(root)
        index, table = (ShardIndex.open(root / name) for name in (QUERIES, CANDIDATES))

        # The split is chosen by the index alone, so that samples of other splits are never read.
        entries = [entry for entry in index.entries if entry.meta["split"] == split]
        queries = tuple(_query(index, entry) for entry in entries)
        names = tuple(_gallery_and_name(table, entry) for entry in table.entries)

        _check_candidates(root, tasks, queries, names)
        path = str(root.relative_to(folder))
        origin = (*revision_and_losses(root), content_of(index, table))
        yield BenchmarkRoot(path, tasks, queries, names, *origin)


def content_of(queries: ShardIndex, candidates: ShardIndex) -> str:
    """Hash (16 hex digits) of the bytes of a root, which ties saved vectors to these data."""
    both = queries.origin().sha256 + candidates.origin().sha256
    return hashlib.sha256(both.encode()).hexdigest()[:16]


def read_tasks(root: Path) -> tuple[EvaluationTask, ...]:
    """The benchmark's rows, `tasks.json`, each task once.

    Raises:
        FileNotFoundError: there are none.
        ValueError: a row is no task, or a task stands twice.
    """
    path = root / TASKS
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: expected a list of evaluation tasks. Run "
            f"`python -m datamodules.prepare` first, or correct `root`."
        )

    tasks = read_json(path, tuple[EvaluationTask, ...], _PREPARE)
    names = [task.name for task in tasks]

    # Scores are filed by task name: of two tasks of one name, one would be lost.
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ValueError(
            f"{path} is broken: task {twice[0]!r} stands twice, expected every task once. "
            f"{_PREPARE}"
        )
    return tasks


def parse_query(
    key: str,
    data: QueryJson,
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
        ValueError: an index that differs, a list that is no list of rows or that repeats a
            candidate without stating it.
    """
    # The index chose this sample by split and task: a JSON that differs is of another sample.
    check_index(data, meta)
    return Query(
        key=key,
        task=data.task,
        split=data.split,
        concept=data.concept,
        fact=data.fact,
        side=side,
        relevance=data.relevance,
        answers=data.answers,
        candidates=None if listed is None else _listed_rows(listed, data.repeats),
        gallery=meta.get("gallery", ""),
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
            f"candidates.npy repeats {counted(repeats, 'row')}, the json states {num_repeats} as "
            f"{REPEATS!r}: expected every candidate once unless the published list repeats some."
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

    # Names are compared with their gallery: the same name may stand in several galleries.
    places = set(names)
    for query in queries:
        where = f"{root / QUERIES}, sample {query.key}"
        if gallery_of.get(query.task) != query.gallery:
            raise ValueError(
                f"{where} is of task {query.task!r} and gallery {query.gallery!r}, which {TASKS} "
                "does not have together; prepare the data again."
            )

        # A negative or a placebo row would silently name another candidate.
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


@final
class _ManifestJson(Excerpt):
    """The fields of a data root's manifest that scores repeat."""

    revision: str | None = None
    partial: bool = False
    skipped: tuple[str, ...] = ()


def revision_and_losses(root: Path) -> tuple[str, str]:
    """Reads the data's revision from the manifest of a root, and why rows are missing."""
    path = root / MANIFEST
    stated = read_json(path, _ManifestJson, _PREPARE) if path.is_file() else _ManifestJson()
    why = f"{counted(len(stated.skipped), 'row')} left out by prepare" if stated.partial else ""
    return stated.revision or "", why


def _query(index: ShardIndex, entry: IndexEntry) -> Query:
    data = index.read_json(entry, QueryJson, _PREPARE)
    listed = index.read(entry, {"candidates.npy"}).get("candidates.npy")

    # Contents alone, without pixels: scores need no picture.
    media = tuple(Media("image", digest) for digest in entry.media.values())
    try:
        return parse_query(
            entry.key,
            data,
            entry.meta,
            Side(data.text, data.instruction, media),
            None if listed is None else np.load(io.BytesIO(listed), allow_pickle=False),
        )
    except ValueError as error:
        raise _broken(index, entry, "query", error) from None


def _gallery_and_name(table: ShardIndex, entry: IndexEntry) -> tuple[str, str]:
    """Gallery and name of a candidate, which are equal in its index and its JSON."""
    data = table.read_json(entry, CandidateJson, _PREPARE)
    try:
        check_index(data, entry.meta)
    except ValueError as error:
        raise _broken(table, entry, "candidate", error) from None
    return data.gallery, data.name


def _broken(index: ShardIndex, entry: IndexEntry, what: str, error: ValueError) -> ValueError:
    where = f"{index.folder / entry.shard}, sample {entry.key}"
    return ValueError(f"{where} is no {what}: {error} {_PREPARE}")
