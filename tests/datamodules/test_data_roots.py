"""What a prepared benchmark says is right: nothing broken or contradictory is scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from datamodules.data_roots import read_benchmark, read_tasks
from tests.fixtures.benchmark_root import TASK, write_root


def test_a_root_is_read(tmp_path: Path) -> None:
    lists = [[0, 1], [2, 1, 2]]
    (whole,) = read_benchmark(write_root(tmp_path / "whole"))
    assert [query.candidates for query in whole.queries] == [None, None]
    assert whole.name_of_row[-1] == ("other", "elsewhere")
    write_root(tmp_path / "local", lists=lists[:1], relevance=[{"b": 2.0, "a": 0.5}])
    (local,) = read_benchmark(tmp_path / "local")
    assert local.queries[0].candidates == (0, 1)
    assert local.queries[0].relevance == {"b": 2.0, "a": 0.5}
    write_root(tmp_path / "repeats", lists=lists[1:], relevance=[{"b": 1}], repeats=1)
    (repeats,) = read_benchmark(tmp_path / "repeats")
    assert repeats.queries[0].candidates == (2, 1, 2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"relevance": [{"a": 0}]}, r"`float` > 0.0 - at `\$\.relevance\['a'\]`"),
        ({"relevance": [{"a": -1.0}]}, r"`float` > 0.0 - at `\$\.relevance\['a'\]`"),
        ({"relevance": [{"a": 1001}]}, r"`float` <= 1000.0 - at `\$\.relevance\['a'\]`"),
        ({"relevance": [{"a": "1"}]}, "Expected `float`, got `str`"),
        ({"relevance": [{}]}, r"length >= 1 - at `\$\.relevance`"),
        ({"relevance": [{"z": 1.0}]}, "right candidate 'z' is not among"),
        ({"lists": [[0, 1, 1], [1]]}, "repeats 1 row, the json states 0"),
        ({"lists": [[0, 1], [1]], "repeats": 1}, "repeats 0 rows, the json states 1"),
        ({"lists": [[0.0, 1.9], [1.0]]}, "float64 .*: expected a list of whole numbers"),
        ({"lists": [[[0]], [[1]]]}, "expected a list of whole numbers"),
        ({"lists": [[0, -1], [1]]}, "lists row -1"),
        ({"lists": [[0, 3], [1]]}, "lists row 3, which gallery 'g' does not have"),
        ({"lists": [[0, 9], [1]]}, "lists row 9"),
        ({"lists": [[1, 2], [1]]}, "right candidate 'a' is not among"),
        ({"query_meta": {"task": "other"}}, "index says task 'other', the json 'VOC2007'"),
        ({"query_meta": {"concept": "x"}}, "index says concept 'x', the json 'c0'"),
        ({"query_meta": {"gallery": "other"}}, "gallery 'other', which tasks.json does not have"),
        ({"candidate_meta": {"name": "x"}}, "index says name 'x', the json 'a'"),
    ],
)
def test_what_is_broken_or_contradictory_is_refused(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        list(read_benchmark(write_root(tmp_path, **change)))


def test_a_task_that_stands_twice_is_refused(tmp_path: Path) -> None:
    root = write_root(tmp_path)
    (root / "tasks.json").write_text(json.dumps([TASK, TASK | {"metric": "ndcg_linear@5"}]))
    for read in (lambda: list(read_benchmark(root)), lambda: read_tasks(root)):
        with pytest.raises(ValueError, match="task 'VOC2007' stands twice"):
            read()
