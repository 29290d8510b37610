"""Own data cut into splits by content: nothing is shared, whatever the order of the table."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from datamodules.prepare.__main__ import main
from datamodules.prepare.folder.splits import Cut, Shares, cut_rows
from datamodules.prepare.folder.table import OwnRow, OwnSide
from mmemb.storage.shard_index import ShardIndex
from tests.fixtures.own_table import write_csv
from tests.fixtures.tiny_data import picture

NUM = 1000
WANTED = {"train": 70, "val": 5, "gate": 10, "calibration": 5, "test": 10}


def row(number: int, query: str, target: str, concept: str = "", negative: str = "") -> OwnRow:
    negatives = (OwnSide(negative),) if negative else ()
    sides = (OwnSide(query), (OwnSide(target),), negatives)
    return OwnRow(number, f"id-{number}", "t", "train", *sides, concept=concept)


def elements(rows: list[OwnRow]) -> dict[int, list[tuple[str, ...]]]:
    return {r.number: [(side.text,) for side in (r.query, *r.positives)] for r in rows}


def cut(rows: list[OwnRow], **settings: object) -> Cut:
    return cut_rows(rows, elements(rows), Shares(**settings))  # type: ignore[arg-type]


def pairs(num: int) -> list[OwnRow]:
    return [row(n, f"query {n}", f"target {n}") for n in range(num)]


def sizes(done: Cut) -> Counter[str]:
    return Counter(r.split for r in done.rows)


def test_rows_that_share_nothing_are_cut_exactly() -> None:
    done = cut(pairs(NUM))
    assert sizes(done) == {split: NUM * share // 100 for split, share in WANTED.items()}
    assert done.lines[0] == "split train: 700 rows in 700 groups (70 %, 70 % asked for)"
    assert len(done.lines) == len(WANTED)


def test_no_two_splits_share_anything() -> None:
    """By the plain definition, in a table of random neighbours and concepts."""
    draw = random.Random(0)
    rows = [
        row(n, f"q {draw.randrange(900)}", f"t {draw.randrange(900)}", "c" * (n % 97 == 0))
        for n in range(600)
    ]
    done = cut(rows)
    split_of: dict[str, str] = {}
    for each in done.rows:
        for shared in (each.query.text, each.positives[0].text, each.concept):
            if shared:
                assert split_of.setdefault(shared, each.split) == each.split
    assert set(sizes(done)) == set(WANTED)


def test_order_and_ids_decide_nothing() -> None:
    rows = pairs(200) + [row(n, f"query {n - 200}", "another") for n in range(200, 204)]
    before = {r.query.text: r.split for r in cut(rows).rows}
    shuffled = [replace(r, number=n, id=f"x{n}") for n, r in enumerate(reversed(rows))]
    assert {r.query.text: r.split for r in cut(shuffled).rows} == before


def test_a_large_group_is_trained_on_and_its_reason_named() -> None:
    rows = [row(n, f"query {n}", "a photo" if n < 600 else f"target {n}") for n in range(NUM)]
    done = cut(rows)
    assert {r.split for r in done.rows if r.number < 600} == {"train"}
    assert sizes(done)["test"] == 100
    assert done.lines[-1] == (
        "warning: not every share could be met, or only by few groups. One group holds 600 of "
        "1,000 rows (60 %); most of them, 600, share the text 'a photo'. If texts of targets are "
        "labels, which all splits share, say --labels."
    )


def test_too_little_is_left_beside_a_large_group() -> None:
    """Every split gets a part of what is left, in proportion to what was asked for."""
    rows = [row(n, f"query {n}", "a photo" if n < 900 else f"target {n}") for n in range(NUM)]
    done = cut(rows)
    assert sizes(done) == {"train": 900, "val": 17, "gate": 33, "calibration": 17, "test": 33}
    assert "could be met" in done.lines[-1]


def test_labels_may_be_shared_but_no_query() -> None:
    rows = [row(n, f"query {n // 2}", f"label {n % 3}") for n in range(NUM)]
    with pytest.raises(
        ValueError, match=r"^--split auto leaves no row for val, gate, calib.*label"
    ):
        cut(rows)
    done = cut(rows, labels=True)
    assert sizes(done)["test"] == 100
    splits = {r.number: r.split for r in done.rows}
    assert all(splits[n] == splits[n + 1] for n in range(0, NUM, 2))


def test_too_few_rows_are_one_sentence() -> None:
    with pytest.raises(
        ValueError, match="leaves no row for val, .*: 4 rows in 4 groups that share"
    ):
        cut(pairs(4))


def test_negatives_join_nothing_and_rank_all_alike() -> None:
    rows = [row(n, f"q {n}", f"t {n}", negative="t 0" if n % 2 else "") for n in range(100)]
    done = cut(rows)
    assert sizes(done)["test"] == 10
    evaluated = [r for r in done.rows if r.split != "train"]
    assert not any(r.negatives for r in evaluated)
    assert any(r.negatives for r in done.rows)
    assert "for evaluation left without its negatives" in done.lines[-1]


def table_of(folder: Path, num: int = 40) -> Path:
    (folder / "m").mkdir()
    for n in range(num // 2):
        (folder / f"m/{n}.webp").write_bytes(picture(n))
    # Each picture stands in two rows, under two names of one content.
    for n in range(num // 2, num):
        (folder / f"m/{n}.webp").write_bytes(picture(n - num // 2))
    rows = [
        {"id": f"r{n}", "task": "t", "query_text": f"text {n}", "target_media": f"{n}.webp"}
        for n in range(num)
    ]
    return write_csv(folder / "t.csv", rows)


def prepare(table: Path, out: Path, *more: str) -> int:
    words = ["folder", "--table", str(table), "--media", str(table.parent / "m"), "--out", str(out)]
    return main([*words, "--workers", "1", *more])


def splits_in(out: Path) -> dict[str, str]:
    entries = [
        e for name in ("pairs/plain", "queries") for e in ShardIndex.open(out / name).entries
    ]
    return {entry.key: str(entry.meta["split"]) for entry in entries}


def test_a_table_is_cut_by_its_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, out = table_of(tmp_path), tmp_path / "out"
    assert prepare(table, out, "--split", "auto") == 0
    splits = splits_in(out)
    assert all(splits[f"r{n}"] == splits[f"r{n + 20}"] for n in range(20))
    assert "split train: 28 rows in 14 groups (70 %, 70 % asked for)" in capsys.readouterr().out

    # A second run finds all; other shares are other data; one split may take all rows.
    assert prepare(table, out, "--split", "auto") == 0
    assert "everything is there" in capsys.readouterr().out
    assert prepare(table, out, "--split", "auto:train=50,test=50") == 0
    assert Counter(splits_in(out).values()) == {"train": 20, "test": 20}
    assert prepare(table, tmp_path / "test", "--split", "test") == 0
    entries = ShardIndex.open(tmp_path / "test/queries").entries
    assert {entry.meta["split"] for entry in entries} == {"test"}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--split", "auto"), "has a column split, which --split would overwrite: leave"),
        (("--labels",), "--labels says how rows are cut: give it with --split auto"),
    ],
)
def test_flags_that_do_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], said: str
) -> None:
    (tmp_path / "m").mkdir()
    one = {"id": "a", "task": "t", "split": "train", "query_text": "x", "target_text": "y"}
    assert prepare(write_csv(tmp_path / "t.csv", [one]), tmp_path / "out", *flags) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("text", ["all", "auto:", "auto:train=90", "auto:dev=50,train=50"])
def test_a_split_that_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    with pytest.raises(SystemExit):
        prepare(tmp_path / "t.csv", tmp_path / "out", "--split", text)
    assert "percents that sum to 100" in capsys.readouterr().err
