"""A small table of own data with pictures, a clip and a folder of frames, in all three forms."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.tiny import picture
from tests.tiny_clips import write_video

PARTS = ("train",) * 8 + ("val",) * 2 + ("gate",) * 4 + ("calibration",) * 4 + ("test",) * 6

Row = dict[str, str]


def write_media(folder: Path, num: int = 24) -> Path:
    """`flags/07.webp`, frames of `frames/07/`, and one real clip `clip.mp4`."""
    (folder / "flags").mkdir(parents=True)
    for n in range(num):
        (folder / f"flags/{n:02d}.webp").write_bytes(picture(n))
    for n in range(2):
        (folder / f"frames/{n:02d}").mkdir(parents=True)
        for frame in range(12):
            (folder / f"frames/{n:02d}/f{frame}.webp").write_bytes(picture(n, frame=frame))
    write_video(folder / "clip.mp4")
    return folder


def flag_rows() -> list[Row]:
    """A question about each of 24 flags."""
    return [
        {
            "id": f"flag-{n:02d}", "task": "flags", "split": part,
            "query_text": f"the flag of country-{n:02d}", "target_media": f"flags/{n:02d}.webp",
            "instruction": "Find it.",
        }
        for n, part in enumerate(PARTS)
    ]  # fmt: skip


def write_csv(path: Path, rows: Sequence[Row]) -> Path:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path: Path, rows: Sequence[Row]) -> Path:
    import pyarrow as pa
    from pyarrow import parquet

    names = list(dict.fromkeys(name for row in rows for name in row))
    parquet.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), path)
    return path


def write_lines(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def nested(row: Row) -> dict[str, Any]:
    """The same row in the nested form."""
    query = {"text": row.get("query_text", ""), "instruction": row.get("instruction", "")}
    found: dict[str, Any] = {"query": query, "positives": [{"media": [row["target_media"]]}]}
    return {key: row[key] for key in ("id", "task", "split")} | found
