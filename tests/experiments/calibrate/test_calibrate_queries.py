"""Queries of files and of data roots, and one sentence about what is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.calibrate.queries import read_queries
from mmemb.media import side
from mmemb.records.inputs import Side
from tests.fixtures.tiny_data import picture


def test_lines_are_texts(tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_bytes(b"\xef\xbb\xbfa red car\r\n\n photo.png \n")
    assert list(read_queries(tmp_path / "q.txt")) == [Side("a red car"), Side("photo.png")]


def test_json_lines_name_pictures_from_their_folder(tmp_path: Path) -> None:
    (tmp_path / "one.webp").write_bytes(picture(1))
    (tmp_path / "q.jsonl").write_text(
        '{"text": "like this", "image": "one.webp", "instruction": "Find it."}\n{"text": "b"}\n'
    )
    queries = read_queries(tmp_path / "q.jsonl")
    first = side(queries[0])
    assert (first.text, first.instruction, len(first.media)) == ("like this", "Find it.", 1)
    assert side(queries[1], "Find.") == Side("b", "Find.")


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("{}", "line 2 holds no query"),
        ('{"txt": "a"}', "line 2.*txt.*Keys are text, image"),
        ("a text", "line 2"),
        ('{"text": 3}', "line 2"),
        ('{"text": "a", "text": "b"}', "line 2: the key 'text' occurs twice"),
    ],
)
def test_a_line_that_is_no_query_is_named(line: str, named: str, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"text": "a"}\n' + line + "\n")
    with pytest.raises(ValueError, match=named):
        read_queries(tmp_path / "q.jsonl")


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected a file of queries"):
        read_queries(tmp_path / "gone.txt")
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(ValueError, match="holds no query"):
        read_queries(tmp_path / "empty.txt")
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(ValueError, match="line 1 is no UTF-8"):
        read_queries(tmp_path / "latin.txt")
    with pytest.raises(ValueError, match="has no splits"):
        read_queries(tmp_path / "empty.txt", "test")
    (tmp_path / "q.json").write_text('{"text": "a"}')
    with pytest.raises(ValueError, match="expected JSON lines"):
        read_queries(tmp_path / "q.json")


@pytest.mark.parametrize("data", [b"one\rtwo\r", b"a\0b\n"])
def test_a_file_of_other_line_ends_is_not_one_query(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_bytes(data)
    with pytest.raises(ValueError, match="a carriage return or a NUL"):
        read_queries(tmp_path / "q.txt")


def test_lines_without_a_visible_letter_are_no_queries(tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("a\n\u200b\nb\r\n", encoding="utf-8")
    assert len(read_queries(tmp_path / "q.txt")) == 2


def test_a_data_root_gives_the_queries_of_a_split(tiny_root: Path) -> None:
    every, some = read_queries(tiny_root), read_queries(tiny_root, "test")
    assert 0 < len(some) < len(every)
    assert all(isinstance(query, Side) for query in some)
    with pytest.raises(ValueError, match="has no split 'tset'; there are .*test"):
        read_queries(tiny_root, "tset")
    with pytest.raises(ValueError, match="has no task 'x'"):
        read_queries(tiny_root, "test", ["x"])
