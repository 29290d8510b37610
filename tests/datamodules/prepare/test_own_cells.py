"""Cells, rows and paths of own tables: read as their type says in all three forms, or a fault."""

from __future__ import annotations

import csv
import datetime
import io
import json
import math
import os
import tempfile
import unicodedata
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.prepare import row_files
from datamodules.prepare.cells import MAX_LETTERS
from datamodules.prepare.folder.check import check_cells
from datamodules.prepare.folder.columns import Columns
from datamodules.prepare.folder.table import COLUMNS, OwnRow, read_table
from datamodules.prepare.media_paths import MediaPathError, find_media
from mmemb.storage.file_hashes import FileHashes
from tests.datamodules.prepare.test_prepare_folder import prepare
from tests.fixtures.own_table import flag_rows, write_csv, write_lines, write_media

GOOD = {"id": "a", "task": "t", "split": "train", "query_text": "q", "target_text": "x"}
TEXTS = ("query_text", "target_text", "instruction", "concept")


def as_csv(row: Mapping[str, Any]) -> bytes | None:
    """A row as CSV, which holds texts alone; what it cannot hold is None."""
    if not all(isinstance(value, str | None) for value in row.values()):
        return None
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerows([row.keys(), row.values()])
    return file.getvalue().encode(errors="surrogatepass")


def as_lines(row: Mapping[str, Any]) -> bytes | None:
    try:
        return json.dumps(row, allow_nan=False).encode() + b"\n"
    except (TypeError, ValueError):
        return None


def as_parquet(row: Mapping[str, Any]) -> bytes | None:
    import pyarrow as pa
    from pyarrow import parquet

    sink = io.BytesIO()
    try:
        parquet.write_table(pa.table({name: [value] for name, value in row.items()}), sink)
    except (pa.ArrowException, UnicodeError, OverflowError):
        return None
    return sink.getvalue()


FORMS: dict[str, Callable[[Mapping[str, Any]], bytes | None]] = {
    "csv": as_csv, "jsonl": as_lines, "parquet": as_parquet,
}  # fmt: skip


def read(folder: Path, form: str, data: bytes) -> list[OwnRow]:
    path = folder / f"t.{form}"
    path.write_bytes(data)
    return list(read_table(path))


def read_all(folder: Path, row: Mapping[str, Any]) -> list[OwnRow]:
    """One row from every form that can hold it."""
    forms = {form: write(row) for form, write in FORMS.items()}
    return [row for form, data in forms.items() if data for row in read(folder, form, data)]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (0.0, "0"), (-0.0, "0"), (7.0, "7"), (0.5, "0.5"), (2**70, str(2**70)),
        (1e300, "1e+300"), (Decimal("7.50"), "7.50"), (None, ""), (math.nan, ""), ("", ""),
        (" \u200b", ""), ("NaN", "NaN"), ("null", "null"), (" a ", " a "), ("é\n|,\"", "é\n|,\""),
    ],
)  # fmt: skip
def test_a_text_is_what_its_type_says(tmp_path: Path, value: Any, text: str) -> None:
    rows = read_all(tmp_path, GOOD | {"instruction": value})
    assert rows
    for row in rows:
        assert (row.faults, row.query.instruction) == ((), text)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (True, "True is a truth value"),
        (False, "False is a truth value"),
        (math.inf, "inf is not finite"),
        (["a", "b"], "['a', 'b'] is a list: expected a text or a number"),
        ([["a"]], "is a list"),
        ({"a": 1}, "{'a': 1} is an object"),
        (b"abc", "b'abc' is bytes"),
        (datetime.date(2020, 1, 2), "is a date: expected a text"),
        (datetime.datetime(2020, 1, 2), "is a datetime"),
        ("a\0b", "'a\\x00b' holds a NUL"),
        ("x" * (MAX_LETTERS + 1), "1,000,00"),
        ("cut \ud83d", "half of a surrogate pair"),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_a_cell_without_one_right_text_is_a_fault_of_its_row(
    tmp_path: Path, value: Any, said: str
) -> None:
    rows = read_all(tmp_path, GOOD | {"query_text": value})
    assert rows
    for row in rows:
        (fault,) = row.faults
        assert said in fault or "no UTF-8" in fault
        assert len(fault) < 250
        assert fault.isprintable()


def test_a_cell_beyond_pythons_limit_for_csv_is_read(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    (row,) = read(tmp_path, "csv", as_csv(GOOD | {"query_text": "x" * 200_000}) or b"")
    assert (len(row.query.text), row.faults) == (200_000, ())
    assert csv.field_size_limit() == before


CSV_HEADING = b"id,task,split,query_text,target_text\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'b,t,train,"never closed,x', "no comma-separated values"),
        (b'b,t,train,"closed" late,x', "no comma-separated values"),
        (b"b,t,train,a, b,x", "6 cells, but the heading has 5"),
        (b"b,t,train", "3 cells, but the heading has 5"),
        (b"b,t,train,caf\xe9,x", "the byte 0xe9, which is no UTF-8"),
        (b"b,t,train,a\0,x", "holds a NUL"),
        (b"b,t,train," + b"x" * (MAX_LETTERS + 2) + b",x", "field larger than field limit"),
    ],
    ids=lambda value: ascii(value)[:30],
)
@pytest.mark.parametrize("quoted", [False, True])
def test_a_broken_line_of_csv_takes_no_other(
    tmp_path: Path, line: bytes, said: str, quoted: bool
) -> None:
    others = [b"%d,t,train,%s,x" % (n, b'"a, \n""b"""' if quoted else b"a") for n in range(4)]
    lines = [*others[:2], line, *others[2:]]
    rows = read(tmp_path, "csv", b"\xef\xbb\xbf" + CSV_HEADING + b"\r\n".join(lines))
    assert [row.id for row in rows if not row.faults] == ["0", "1", "2", "3"]
    (bad,) = (row for row in rows if row.faults)
    assert bad.number == 3
    assert any(said in fault for fault in bad.faults)


def test_every_third_quote_that_is_not_closed_costs_its_row_alone(tmp_path: Path) -> None:
    lines = [b'%d,t,train,"a%s,x' % (n, b"" if n % 3 == 0 else b'"') for n in range(300)]
    rows = read(tmp_path, "csv", CSV_HEADING + b"\n".join(lines))
    assert [row.number % 3 for row in rows if row.faults] == [1] * 100
    assert len(rows) == 300


def test_a_row_in_two_lines_may_seem_to_close_the_quote_of_another(tmp_path: Path) -> None:
    """Its cells are too many, and the rows between the two quotes are read."""
    lines = [b'0,t,train,"a,x', b"1,t,train,a,x", b"2,t,train,a,x", b'3,t,train,a",b,x']
    rows = read(tmp_path, "csv", CSV_HEADING + b"\n".join(lines))
    assert [(row.id, bool(row.faults)) for row in rows] == [
        ("", True), ("1", False), ("2", False), ("", True),
    ]  # fmt: skip
    two_lines = CSV_HEADING + b'0,t,train,"a\nb",x,y\n1,t,train,a,x'
    assert [row.id for row in read(tmp_path, "csv", two_lines)] == ["", "1"]


def test_quotes_that_swallow_the_rest_at_each_line_cost_no_square(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_files, "_GIVEN_BACK", 1000)
    with pytest.raises(ValueError, match="quotes are not closed at too many places"):
        read(tmp_path, "csv", CSV_HEADING + b'x","\n' * 1000)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("csv", b",%s\n0,a,t,train,q,x\n7,b,t,train,q,y\n"),
        ("csv", b",Unnamed: 0,%s\n0,0,a,t,train,q,x\n1,1,b,t,train,q,y"),
        ("csv", b"%s,,\r\na,t,train,q,x,,\r\nb,t,train,q,y,,\r\n,,,,,,\r\n"),
        ("CSV", b"%s\ra,t,train,q,x\rb,t,train,q,y\r,,,,\r,,\r"),
    ],
    ids=["index", "index twice", "Excel", "macOS"],
)
def test_what_pandas_and_excel_add_is_no_fault(tmp_path: Path, name: str, content: bytes) -> None:
    rows = read(tmp_path, name, content % CSV_HEADING.strip())
    assert [(row.id, row.positives[0].text, row.faults) for row in rows] == [
        ("a", "x", ()), ("b", "y", ()),
    ]  # fmt: skip


def test_empty_lines_of_json_are_no_rows_and_pandas_numbers_no_column(tmp_path: Path) -> None:
    lines = [as_lines(GOOD | {"id": name, "__index_level_0__": 9}) or b"" for name in "ab"]
    rows = read(tmp_path, "jsonl", b"\r\n".join([*lines, b" \n"]))
    assert [(row.id, row.number, row.faults) for row in rows] == [("a", 1, ()), ("b", 3, ())]


def test_a_column_without_a_name_that_says_something_is_named(tmp_path: Path) -> None:
    content = (
        b"id,task,split,query_text,target_text,\na,t,train,q,x,words\n\n,,,,,\nb,t,train,q,x,,\n"
    )
    (tmp_path / "t.csv").write_bytes(content)
    columns = Columns()
    first, second = read_table(tmp_path / "t.csv", columns)
    assert first.faults == ()
    assert "not used: 'Unnamed: 5'" in columns.notes()[0]
    assert (second.number, second.faults[0][:7]) == (3, "7 cells")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('[{"id": "a"}]', "Expected `object`, got `array`"),
        ('{"id": "a", "id": "b"}', "the key 'id' occurs twice in one object"),
        ('{"query": {"text": "a", "text": "b"}}', "the key 'text' occurs twice"),
        ('{"id": NaN}', "NaN is no number that JSON has"),
        ('{"id": ' + "[" * 100_000, "nested too deeply"),
        ('{"id": 1e999}', "out of range"),
        ('{"query": "a"}', "query 'a': expected an object"),
        ('{"query": {"text": ["a"]}}', "query.text ['a'] is a list"),
        ('{"query": {"media": ["a", null]}}', "query.media ['a', None] holds an empty path"),
        ('{"positives": {"text": "a"}}', "positives {'text': 'a'}: expected a list"),
        ('{"positives": [{"texts": "a"}]}', "positives[0] {'texts': 'a'}: expected an object"),
        ('{"id": "cut \\ud83d"}', "half of a surrogate pair"),
    ],
    ids=lambda value: value[:30],
)
def test_a_broken_line_of_json_is_named(tmp_path: Path, line: str, said: str) -> None:
    first, row = read(tmp_path, "jsonl", f"\ufeff{json.dumps(GOOD)}\n{line}\n".encode())
    assert first.faults == ()
    assert any(said in fault for fault in row.faults), row.faults


def test_columns_of_parquet_of_every_type(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    def of(kind: Any, values: list[Any]) -> Any:
        return pa.array(values, kind)

    cut = pa.array([b"ok", b"\xed\xa0\xbd"], pa.binary()).view(pa.string())
    columns = {
        "id": of(pa.large_string(), ["a", "b"]),
        "task": of(pa.string(), ["t", "t"]).dictionary_encode(),
        "split": of(pa.string(), ["train", "train"]),
        "query_text": of(pa.float32(), [0.1, math.nan]),
        "target_text": of(pa.decimal128(38, 0), [12, None]),
        "target_media": of(pa.list_(pa.string()), [["a.png", "b.png"], ["a|b.png"]]),
        "negative_text": of(pa.timestamp("ns"), [None, 1]),
        "concept": cut,
    }
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    first, second = read_table(tmp_path / "t.parquet")
    assert (first.id, first.task, first.faults) == ("a", "t", ())
    assert first.query.text == "0.1"
    assert first.positives[0].name == "a.png|b.png:12"
    assert second.positives[0].media == ("a|b.png",)
    assert len(second.faults) == 3
    assert any("is no UTF-8 (byte 0xed" in fault for fault in second.faults)
    assert "an empty side (neither text nor media)" in second.faults


def test_nested_columns_of_parquet_are_nested_rows(tmp_path: Path) -> None:
    row = {"id": 7, "task": "t", "split": "test", "query": {"text": "q", "media": ["a.png"]}}
    row |= {"positives": [{"text": "x", "media": None, "instruction": "Find."}]}
    rows = [read(tmp_path, form, FORMS[form](row) or b"")[0] for form in ("jsonl", "parquet")]
    assert rows[0] == rows[1]
    assert rows[0].faults == ()
    assert rows[0].media_columns == ("query.media", "positives[0].media")


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own") / "media"
    (folder / "in").mkdir(parents=True)
    names = ["in/a.png", unicodedata.normalize("NFD", "in/é.png"), "text.txt", "../out.png"]
    # Two Unicode forms of one name that are neither composed nor taken apart.
    names += ["in/a\u0307\u0323.png", "in/\u0227\u0323.png"]
    for name in names:
        (folder / name).write_bytes(b"x")
    links = {"leaves.png": "../out.png", "nothing.png": "nowhere", "round.png": "round.png"}
    links |= {"zero.png": "/dev/zero", "good.png": "in/a.png"}
    for name, target in links.items():
        (folder / name).symlink_to(target)
    os.mkfifo(folder / "pipe.png")
    for name in ("none", "holds/f.png", "waits", "leads"):
        (folder / name).mkdir(parents=True)
    os.mkfifo(folder / "waits/f0.png")
    (folder / "leads/f0.png").symlink_to("../../out.png")
    return folder


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("in/no.png", "is missing"),
        (r"in\a.png", "is missing: expected `/` between folders"),
        ("in/a.png/b.png", "is missing"),
        ("leaves.png", "is a link that leads out of media/"),
        ("zero.png", "is a link that leads out of media/"),
        ("nothing.png", "is a link to something that is missing"),
        ("round.png", "is a link that leads back to itself"),
        ("pipe.png", "is a pipe: expected a file or a folder"),
        ("/etc/passwd", "is absolute"),
        ("in/../in/a.png", "leads out of the folder"),
        ("x" * 300 + ".png", "is too long for a path"),
        ("x/" * 2000 + "a.png", "is too long for a path"),
        ("text.txt", "expected a file that ends in"),
        ("none", "is a folder without pictures"),
        ("holds", "is a folder, and no frame"),
        ("waits", "is a pipe"),
        ("leads", "is a link that leads out of media/"),
        (["in/a.png", ""], "holds an empty path"),
        ("in/a.png||in/a.png", "holds an empty path"),
        (b"\x89PNG", "is bytes"),
        ({"path": "a.png", "bytes": None}, "is an object"),
        ([["in/a.png"]], "is a list"),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_a_path_that_leads_to_no_media_is_a_fault_of_its_row(
    media: Path, tmp_path: Path, name: Any, said: str
) -> None:
    found = [
        check_cells([row], media)
        for row in read_all(tmp_path, GOOD | {"target_media": name, "target_text": None})
    ]
    assert found
    for ((number, fault),) in found:
        assert (number, fault.startswith("target_media ")) == (1, True)
        assert said in fault
        assert "Errno" not in fault
        assert len(fault) < 250


def test_a_name_in_another_unicode_form_is_found(media: Path) -> None:
    for form in ("NFC", "NFD"):
        path = find_media(media, unicodedata.normalize(form, "in/é.png"))
        assert path.read_bytes() == b"x"
    assert find_media(media, "good.png").name == "good.png", "a link inside is followed"
    assert len(list((media / "in").iterdir())) == 4
    with pytest.raises(MediaPathError, match="2 files are so named in other Unicode forms"):
        find_media(media, "in/\u1ea1\u0307.png")


def test_names_that_differ_by_form_alone_are_faults(tmp_path: Path) -> None:
    changes: list[dict[str, str]] = [{}, {"task": "T"}]
    changes += [{"concept": "é"}, {"concept": "e\u0301"}]
    changes += [{"target_text": "é"}, {"target_text": "e\u0301"}]
    changes += [{"task": "a", "target_text": "b c"}, {"task": "a b", "target_text": "c"}]
    rows = [GOOD | {"id": f"{n}"} | change for n, change in enumerate(changes)]
    found = check_cells(list(read_table(write_lines(tmp_path / "t.jsonl", rows))), tmp_path)
    assert [number for number, _ in found] == [2, 4, 6]
    assert "is written otherwise in row 5" in found[2][1]


def test_names_that_stand_for_two_things_are_faults(tmp_path: Path) -> None:
    rows = [GOOD | {"id": f"{n}"} for n in range(3)]
    rows[0] |= {"target_text": "a:b"}
    rows[1] |= {"target_text": "b", "target_media": ["a"]}
    rows[2] |= {"task": "x" * 300}
    found = check_cells(list(read_table(write_lines(tmp_path / "t.jsonl", rows))), tmp_path)
    assert found[0] == (2, "target 'a:b' has other media and text in row 1")
    assert "is too long for the name of a file" in found[-1][1]


def test_a_folder_of_media_that_is_missing_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_csv(tmp_path / "t.csv", flag_rows())
    assert prepare(table, tmp_path / "none", tmp_path / "out") == 1
    assert "none is no folder" in capsys.readouterr().err


def test_faults_come_before_anything_is_hashed_or_decoded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    media = write_media(tmp_path / "media")
    rows = flag_rows()
    rows[3]["target_media"] = "flags/99.webp"
    table = write_csv(tmp_path / "t.csv", rows)
    hashed = []
    sha256 = FileHashes.sha256
    monkeypatch.setattr(
        FileHashes, "sha256", lambda self, path: hashed.append(path) or sha256(self, path)
    )
    assert prepare(table, media, tmp_path / "out") == 1
    assert not hashed
    refused = capsys.readouterr().out
    assert prepare(table, media, tmp_path / "out", "--on-error", "skip") == 0
    assert hashed
    skipped = json.loads((tmp_path / "out/manifest.json").read_text())["skipped"]
    assert skipped == [line for line in refused.splitlines() if line.startswith("row ")]


CELLS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(),
    st.floats(),
    st.text(st.characters(exclude_categories=[])),
    st.text("aé\u0301|/., \"'\n\r\0\ud83d\u2028"),
    st.binary(max_size=4),
    st.dates(),
    st.datetimes(),
    st.times(),
    st.decimals(allow_nan=False, allow_infinity=False, places=2, min_value=-1000, max_value=1000),
    st.lists(st.text("ab|/"), max_size=3),
    st.lists(st.lists(st.integers(0, 9), max_size=2), max_size=2),
    st.dictionaries(st.sampled_from(["text", "media", "path"]), st.text("ab"), max_size=2),
)
SIDES = st.dictionaries(st.sampled_from(["text", "media", "instruction"]), CELLS, min_size=1)
ROWS = st.one_of(
    # Most rows have one cell of any kind, so that many are good.
    st.dictionaries(st.sampled_from([*COLUMNS, "colour"]), CELLS, min_size=1, max_size=2).map(
        lambda changed: GOOD | changed
    ),
    st.builds(
        lambda query, target: {
            **{name: GOOD[name] for name in ("id", "task", "split")},
            "query": {"text": "q"} | query,
            "positives": [{"text": "x"} | target],
        },
        SIDES,
        SIDES,
    ),
)


@settings(max_examples=50)
@given(ROWS)
def test_a_row_is_the_same_in_every_form_that_can_hold_it(row: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = read_all(Path(folder), row)
        for each in found:
            check_cells([each], Path(folder))
            assert all(len(fault) < 300 and fault.isprintable() for fault in each.faults)
    good = [each for each in found if not each.faults]
    assert not good or good == [good[0]] * len(found)


@settings(max_examples=50)
@given(st.sampled_from(["csv", "jsonl"]), st.binary() | st.text('",\n{}[]:a\\ud83').map(str.encode))
def test_bytes_of_any_kind_are_rows_with_faults(form: str, data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        body = CSV_HEADING + data if form == "csv" else data
        for row in read(Path(folder), form, body):
            assert all(fault.isprintable() for fault in row.faults)
