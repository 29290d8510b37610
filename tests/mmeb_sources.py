"""What small data sets in the published layouts of MMEB-V2 are made of."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, final

import pyarrow
from PIL import Image
from pyarrow import parquet

from mmemb.benchmarks.mmeb_v2 import Task, task_named

TOKEN = "<|image_1|>"
FRAMES = "video-tasks/frames"


@final
@dataclass(frozen=True, slots=True)
class Asked:
    """A query as it should be read back: `media` is `image`, `3 frames` or nothing."""

    text: str
    instruction: str
    media: str
    relevance: Mapping[str, float]
    names: Sequence[str] | None = None
    answers: tuple[str, ...] = ()


@final
@dataclass(frozen=True, slots=True)
class Case:
    """A task whose counts fit what was written, and its expected rows; candidates: name, text."""

    task: Task
    queries: Sequence[Asked]
    candidates: Sequence[tuple[str, str]]
    instruction: str = ""
    media: str = ""


@cache
def picture(number: int, kind: str = "PNG") -> bytes:
    """A picture of its own for every number."""
    buffer = io.BytesIO()
    Image.new("RGB", (8 + number % 5, 8), (number % 256, 40, 90)).save(buffer, kind)
    return buffer.getvalue()


def put(path: Path, data: bytes) -> Path:
    """Writes a file and its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def put_frames(folder: Path, count: int, first: int = 0) -> None:
    """Saved frames, with names that sort wrongly as text."""
    for n in range(count):
        put(folder / f"frame_{n}.jpg", picture(first + n, "JPEG"))


def put_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Annotations, as parquet or as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def repository(source: Path, name: str) -> Path:
    """Where the annotations of a repository lie."""
    return source / "annotations" / name


def counted(name: str, queries: int, candidates: int | None, **changes: Any) -> Task:
    """A row of the registry with other counts."""
    return replace(task_named(name), num_queries=queries, num_candidates=candidates, **changes)


def write_pages(
    source: Path,
    task: Task,
    queries: Sequence[tuple[Any, str]],
    pages: Sequence[tuple[Any, bytes]],
    grades: Sequence[tuple[Any, Any, float]],
) -> None:
    """Tables of queries, pages and grades, with the README that says where they lie."""
    folder, tables = repository(source, task.source), ("queries", "corpus", "qrels")
    stated = "".join(
        f"- config_name: {t}\n  data_files:\n  - split: {task.split}\n    path: {t}-data/part*\n"
        for t in tables
    )
    put(folder / "README.md", f"---\nconfigs:\n{stated}---\nPages\n".encode())
    rows = (
        [{"query-id": q, "query": text} for q, text in queries],
        [{"corpus-id": c, "image": {"bytes": data, "path": None}} for c, data in pages],
        [{"query-id": q, "corpus-id": c, "score": grade} for q, c, grade in grades],
    )
    for table, content in zip(tables, rows, strict=True):
        put_rows(folder / f"{table}-data" / "part0.parquet", content)
