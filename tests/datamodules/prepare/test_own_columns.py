"""Columns of a table under our names: mapped, recognised, not used; ids of every kind."""

from __future__ import annotations

import doctest
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from datamodules.prepare.__main__ import main
from datamodules.prepare.folder import columns, sample_keys
from datamodules.prepare.folder.columns import Columns, parse_map
from datamodules.prepare.folder.sample_keys import PLAIN, sample_key
from datamodules.prepare.folder.table import OwnRow, read_table, with_defaults
from mmemb.rationales.writers.pool import read_pool
from mmemb.storage.shard_index import ShardIndex
from tests.fixtures.own_table import flag_rows, write_csv, write_lines, write_media

Rows = list[dict[str, str]]


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_media(tmp_path_factory.mktemp("own") / "media")


def read(path: Path, given: Mapping[str, str] | None = None) -> tuple[list[OwnRow], list[str]]:
    """The rows of a table with their defaults, and all that is said about it."""
    names = Columns(given)
    rows, notes = with_defaults(list(read_table(path, names)))
    return rows, [*names.notes(), *notes]


def test_a_mapped_table_is_the_table_with_our_names(tmp_path: Path) -> None:
    names = {"query_text": "question", "target_media": "filepath", "id": "no=1", "task": "kind"}
    renamed = [{names.get(name, name): value for name, value in row.items()} for row in flag_rows()]
    words = [f"{theirs}={ours}" for ours, theirs in names.items()]
    rows, notes = read(write_csv(tmp_path / "a.csv", renamed), parse_map(words))
    expected, _ = read(write_csv(tmp_path / "b.csv", flag_rows()))
    assert [row.sides for row in rows] == [row.sides for row in expected]
    assert [(row.id, row.task, row.split) for row in rows] == [
        (row.id, row.task, row.split) for row in expected
    ]
    assert rows[0].media_columns == ("query_media", "filepath"), "messages name the user's column"
    assert notes == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["question"], "--map question: expected COLUMN=NAME"),
        (["=id"], "--map =id: expected COLUMN=NAME"),
        (["a=query_txt"], "'query_txt' is no name of a column"),
        (["a=query_text", "a=target_text"], "column 'a' is mapped twice"),
        (["a=query_text", "b=query_text"], "query_text is mapped twice"),
        (["q=query_text"], "has no column 'q'; it has 'a', 'b', 'query_text'"),
        (["a=query_text"], "has a column query_text as well"),
    ],
)
def test_a_mapping_that_does_not_fit_is_one_sentence(
    tmp_path: Path, words: list[str], said: str
) -> None:
    table = write_csv(tmp_path / "t.csv", [{"a": "1", "b": "2", "query_text": "q"}])
    with pytest.raises(ValueError, match=r"^--map") as error:
        read(table, parse_map(words))
    assert said in str(error.value)


RECOGNISED: list[tuple[dict[str, str], tuple[str, ...]]] = [
    ({"anchor": "a", "positive": "b"}, ("a", "b")),
    ({"anchor": "a", "positive": "b", "negative": "c"}, ("a", "b", "c")),
    ({"query": "a", "positive": "b", "negative_2": "d", "negative_1": "c"}, ("a", "b", "c", "d")),
    ({"query": "a", "document": "b"}, ("a", "b")),
    ({"image": "b.png", "caption": "a"}, ("a", "b.png")),
    ({"image": "b.png", "caption": "a", "title": "t"}, ("a", "b.png")),
    ({"filepath": "b.png", "title": "a"}, ("a", "b.png")),
]


@pytest.mark.parametrize(("row", "names"), RECOGNISED, ids=lambda value: "-".join(value))
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_well_known_pairs_of_columns_are_read_and_said(
    tmp_path: Path, form: str, row: dict[str, str], names: tuple[str, ...]
) -> None:
    write = {"csv": write_csv, "jsonl": write_lines}[form]
    [found], notes = read(write(tmp_path / f"t.{form}", [row]))
    assert tuple(side.name for side in found.sides) == names
    assert (found.id, found.task, found.split, found.faults) == ("1", "pairs", "", ())
    assert notes[0].startswith("columns that are read without --map: ")
    assert "the number of the row" in notes[-2]


@pytest.mark.parametrize(
    "row",
    [
        {"image": "a.png", "question": "a", "answer": "b"},  # is the picture of the question?
        {"image": "a.png", "text": "a", "title": "b"},
        {"anchor": "a", "positive": "b", "query": "c", "document": "d"},
        {"image": "a.png", "picture": "b.png", "caption": "a"},
    ],
    ids=lambda row: "-".join(row),
)
def test_what_could_be_read_in_several_ways_is_asked_for(
    tmp_path: Path, row: dict[str, str]
) -> None:
    with pytest.raises(ValueError, match=r"no column for the (query and the )?target: .*--map"):
        read(write_csv(tmp_path / "t.csv", [row]))


def test_columns_that_are_not_used_are_said(tmp_path: Path) -> None:
    rows = [row | {"colour": "red", "empty": ""} for row in flag_rows()]
    found, notes = read(write_csv(tmp_path / "t.csv", rows))
    assert not any(row.faults for row in found)
    assert [note[:45] for note in notes] == ["columns that are not used: 'colour'. --map CO"]

    _, notes = read(write_csv(tmp_path / "t.csv", [row | {"concpt": "x"} for row in flag_rows()]))
    assert "Did you mean concept?" in notes[0]


def test_a_row_without_what_others_have_is_a_fault(tmp_path: Path) -> None:
    rows: Rows = flag_rows()[:3]
    for row, name in zip(rows, ("id", "task", "split"), strict=True):
        row[name] = ""
    found, notes = read(write_csv(tmp_path / "t.csv", rows))
    assert [row.faults[0].split(":")[0] for row in found] == ["no id", "no task", "no split"]
    assert notes == []


IDS = [
    "https://a.org/b?c=1",
    "a/b c.jpg",
    "with.dot",
    "x" * 200,
    "Ä 1",
    "\U0001f600",
    "%",
    "plain_1",
]


def test_any_id_has_a_key_of_its_own() -> None:
    keys = [sample_key(own_id) for own_id in IDS]
    assert len(set(keys)) == len(IDS)
    assert all(PLAIN.fullmatch(key) for key in keys)
    assert keys[-1] == "plain_1"


def test_ids_of_any_kind_are_kept_and_rationales_find_them(media: Path, tmp_path: Path) -> None:
    rows = [row | {"id": own_id} for row, own_id in zip(flag_rows(), IDS, strict=False)]
    table = write_csv(tmp_path / "t.csv", rows)
    lines: list[dict[str, Any]] = [
        {"id": own_id, "rationales": [f"red {n}"]} for n, own_id in enumerate(IDS)
    ]
    given = write_lines(tmp_path / "r.jsonl", lines)
    out = tmp_path / "out"
    command = ["folder", "--table", str(table), "--media", str(media), "--out", str(out)]
    assert main([*command, "--rationales", str(given), "--workers", "1"]) == 0

    index = ShardIndex.open(out / "pairs/plain")
    assert [entry.own_id for entry in index.entries] == IDS
    pool = read_pool(out / "rationale_pool.json")
    assert sorted(each.answer for drafts in pool.values() for each in drafts) == sorted(
        line["rationales"][0] for line in lines
    )


@pytest.mark.parametrize("module", [columns, sample_keys])
def test_examples_in_docstrings(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize(
    ("changed", "more", "said"),
    [
        ({"split": None}, (), "has no column split: add one"),
        ({}, ("--split", "train"), "has a column split"),
        ({}, ("--direction", "picture-to-text"), "--direction is for pictures with captions"),
    ],
)
def test_arguments_that_do_not_fit_the_columns(
    media: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    changed: dict[str, None], more: tuple[str, ...], said: str,
) -> None:  # fmt: skip
    rows = [
        {name: value for name, value in row.items() if name not in changed} for row in flag_rows()
    ]
    table = write_csv(tmp_path / "t.csv", rows)
    command = ["folder", "--table", str(table), "--media", str(media), "--out", str(tmp_path / "o")]
    assert main([*command, *more]) == 1
    assert said in capsys.readouterr().err
