"""What is right in a prepared benchmark: queries, labels and candidate lists, without a picture.

Reads the shards' JSON and candidate lists alone, so that scores need neither a model nor a decoder.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from mmemb.records import EvaluationTask, Media, Query, Side, from_json
from mmemb.shards import MANIFEST, IndexEntry, ShardIndex

TASKS, QUERIES, CANDIDATES = "tasks.json", "queries", "candidates"


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
    """

    path: str
    tasks: tuple[EvaluationTask, ...]
    queries: tuple[Query, ...]
    name_of_row: tuple[tuple[str, str], ...]
    revision: str = ""
    left_out: str = ""

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
    """What every root at or below a folder says, in order of path; see `roots_below`."""
    for root in roots_below(folder):
        tasks = tuple(from_json(EvaluationTask, row) for row in _json(root / TASKS))
        index, table = (ShardIndex.open(root / name) for name in (QUERIES, CANDIDATES))
        queries = [_query(index, entry) for entry in index.entries if entry.meta["part"] == part]
        names = tuple((entry.meta["gallery"], entry.meta["name"]) for entry in table.entries)
        path = str(root.relative_to(folder))
        yield BenchmarkRoot(path, tasks, tuple(queries), names, *revision_and_losses(root))


def revision_and_losses(root: Path) -> tuple[str, str]:
    """What the manifest of a root says: the data's revision, and why rows are missing."""
    path = root / MANIFEST
    stated = _json(path) if path.is_file() else {}
    skipped = stated.get("skipped") or []
    why = f"{len(skipped)} rows left out by prepare" if stated.get("partial") else ""
    return str(stated.get("revision") or ""), why


def _query(index: ShardIndex, entry: IndexEntry) -> Query:
    members = index.read(entry, {"json", "candidates.npy"})
    where = f"{index.folder / entry.shard}, sample {entry.key}"
    try:
        data = json.loads(members["json"])
        media = tuple(Media("image", digest) for digest in entry.media.values())
        return Query(
            key=entry.key,
            **{name: data[name] for name in ("task", "part", "concept", "fact")},
            side=Side(data["text"], data["instruction"], media),
            relevance={str(name): float(grade) for name, grade in data["relevance"].items()},
            candidates=_rows(members.get("candidates.npy")),
            gallery=entry.meta["gallery"],
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{where} is no query: {error!r}; prepare the data again.") from None


def _rows(data: bytes | None) -> tuple[int, ...] | None:
    if data is None:
        return None
    return tuple(int(row) for row in np.load(io.BytesIO(data), allow_pickle=False))


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}; prepare the data again.") from None
