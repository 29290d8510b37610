"""Tables of own pairs. An input's first line is the file's suffix."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from random import Random
from typing import Any, ClassVar, final

from datamodules.prepare.folder.check import check_cells
from datamodules.prepare.folder.table import OwnRow, read_table
from tests.fixtures.own_table import write_csv, write_lines, write_parquet
from tests.fuzzing.kind import Kind
from tests.fuzzing.mutations import NUMBERS, mutate_bytes, mutate_json, mutate_text, mutate_value
from tests.fuzzing.texts import check_texts


@final
class Tables(Kind):
    """A suffix, a line feed, and the file."""

    name: ClassVar[str] = "tables"

    def make_seeds(self) -> Sequence[bytes]:
        self._media = self.folder / "media"
        self._media.mkdir()
        (self._media / "a.png").write_bytes(b"")
        rows = [
            {"id": f"r{n}", "task": "flags", "split": split, "query_text": f"question, {n}",
             "query_media": "a.png", "target_text": f"answer {n}", "concept": f"c{n}"}
            for n, split in enumerate(("train", "val", "test"))
        ]  # fmt: skip
        nested = [
            {"id": row["id"], "task": "flags", "split": row["split"], "concept": row["concept"],
             "query": {"text": row["query_text"], "media": ["a.png"]},
             "positives": [{"text": row["target_text"]}], "negatives": [{"text": "no"}]}
            for row in rows
        ]  # fmt: skip
        paths = [
            write_csv(self.folder / "a.csv", rows),
            write_parquet(self.folder / "a.parquet", rows),
            write_lines(self.folder / "a.jsonl", rows),
            write_lines(self.folder / "b.jsonl", nested),
        ]
        return [f"{path.suffix}\n".encode() + path.read_bytes() for path in paths]

    def mutate(self, data: bytes, random: Random) -> bytes:
        suffix, _, body = data.partition(b"\n")
        if random.random() < 0.3:
            body = mutate_bytes(body, random, [seed.partition(b"\n")[2] for seed in self.seeds])
        elif suffix == b".jsonl":
            lines = body.split(b"\n")
            at = random.randrange(len(lines))
            lines[at] = mutate_json(lines[at], random).replace(b"\n", b" ")
            body = b"\n".join(lines)
        elif suffix == b".csv":
            body = _other_csv(body, random)
        else:
            body = self._other_parquet(body, random)
        return suffix + b"\n" + body

    def _other_parquet(self, body: bytes, random: Random) -> bytes:
        import pyarrow as pa
        from pyarrow import parquet

        try:
            table = parquet.read_table(io.BytesIO(body))
            name = random.choice(table.column_names)
            values = mutate_value(table[name].to_pylist(), random)
            if random.random() < 0.3:
                values = [random.choice((random.choice(NUMBERS), *values)) for _ in values]
            at = table.column_names.index(name)
            buffer = io.BytesIO()
            parquet.write_table(table.set_column(at, name, pa.array(values)), buffer)
            return buffer.getvalue()
        except Exception:  # not every value has a type of Arrow's
            return mutate_bytes(body, random)

    def marks(self, data: bytes) -> Sequence[str]:
        return ("the_table",)

    def read(self, data: bytes) -> None:
        suffix, _, body = data.partition(b"\n")
        path = self.folder / f"the_table{suffix.decode()}"
        path.write_bytes(body)
        rows = list(read_table(path))
        numbers = [row.number for row in rows]
        assert numbers == sorted(set(numbers)), "numbers of rows"

        if (expected := _numbers(suffix, body)) is not None:
            assert numbers == expected, f"rows {numbers} instead of {expected}"
        for row in rows:
            check_row(row)
        check_texts(fault for _, fault in check_cells(rows, self._media))


def check_row(row: OwnRow) -> None:
    """Asserts that a row has faults, or is whole and can be written down."""
    check_texts(row.faults)
    if row.faults:
        return
    check_texts((row.id, row.task, row.split, row.concept))
    for side in row.sides:
        assert side.text or side.media, "an empty side is no fault"
        check_texts((side.text, side.instruction, *side.media))


def _numbers(suffix: bytes, body: bytes) -> list[int] | None:
    """Numbers of the rows that are not empty, by other means; None if only the table's reader can
    say."""
    body = body.removeprefix(b"\xef\xbb\xbf")
    if suffix == b".jsonl":
        return [number for number, line in enumerate(body.split(b"\n"), 1) if line.strip()]
    if suffix == b".csv" and b'"' not in body and b"\0" not in body:
        lines = [line for line in re.split(rb"\r\n|\r|\n", body) if line]
        return [number for number, line in enumerate(lines[1:], 1) if line.strip(b",")]
    return None


def _other_csv(body: bytes, random: Random) -> bytes:
    """Another cell, in quotes if need be."""
    text = body.decode(errors="surrogateescape")
    try:
        records = list(csv.reader(io.StringIO(text, newline="")))
    except csv.Error:
        return mutate_bytes(body, random)
    if not any(records):
        return mutate_bytes(body, random)
    record = random.choice([record for record in records if record])
    at = random.randrange(len(record))
    value: Any = random.choice((mutate_text(record[at], random), random.choice(NUMBERS)))
    record[at] = value if isinstance(value, str) else json.dumps(value)
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows(records)
    return buffer.getvalue().encode(errors="surrogatepass")
