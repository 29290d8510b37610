"""Own data with equal pairs: under several concepts, in several splits, the other way round."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datamodules.prepare.folder.check import Content, Faults, _groups, compare_rows, read_contents
from datamodules.prepare.folder.media import content_digests
from datamodules.prepare.folder.table import OwnRow, OwnSide
from mmemb.storage.shard_index import ShardIndex
from tests.datamodules.prepare.test_prepare_folder import prepare
from tests.fixtures.own_table import flag_rows, write_csv
from tests.fixtures.tiny_data import picture


def row(
    number: int, query: str, target: str, split: str = "train", topic: str = "", task: str = "t"
) -> OwnRow:
    sides = OwnSide(query), (OwnSide(target),)
    return OwnRow(number, str(number), task, split, *sides, concept=topic)


def check(rows: Sequence[OwnRow]) -> Faults:
    contents, broken = read_contents(rows, Path(), num_frames=1, workers=1)
    return compare_rows(rows, contents, broken)


def test_topics_that_share_a_pair_are_one_group() -> None:
    faults = check(
        [
            row(1, "red white red", "Peru", topic="pe"),
            row(2, "Red  white RED", "peru", topic="south america"),
            row(3, "llama", "Andes", topic="south america"),
            row(4, "Andes", "llama", topic="animals"),
            row(5, "red white", "Poland", topic="pl"),
        ]
    )
    assert not faults.lines
    assert faults.groups == {"pe": "animals", "south america": "animals"}
    (notice,) = faults.notices
    assert "2 training rows with a pair of another concept: rows 1 ('pe') and 2 (" in notice
    assert "rows 3 ('south america') and 4 ('animals')" in notice


PAIRS = st.tuples(st.sampled_from("abc"), st.sampled_from("xyz"), st.sampled_from("klmno"))


@settings(max_examples=30)
@given(st.lists(PAIRS, max_size=12), st.randoms(use_true_random=False))
def test_equal_pairs_are_in_one_group_in_any_order(table, random) -> None:
    rows = [row(n, query, target, topic=topic) for n, (query, target, topic) in enumerate(table)]
    contents = {r.number: Content(((r.query.text,), (r.positives[0].text,))) for r in rows}
    groups, _ = _groups(rows, contents)
    for one in table:
        for other in table:
            if one[:2] == other[:2]:
                assert groups.get(one[2], one[2]) == groups.get(other[2], other[2])

    random.shuffle(rows)
    again, _ = _groups(rows, contents)
    assert {t: again.get(t, t) for *_, t in table} == {t: groups.get(t, t) for *_, t in table}


@pytest.mark.parametrize(
    ("second", "fault"),
    [
        (row(2, "A", "b", "test"), "row 2: its query is that of row 1, which is trained on"),
        (row(2, "A", "b", "gate", task="u"), "row 2: its pair is that of row 1, which is trained"),
    ],
)
def test_a_trained_pair_that_is_evaluated_is_a_fault(second: OwnRow, fault: str) -> None:
    (line,) = check([row(1, "a", "b"), second]).lines
    assert line.startswith(fault)


def test_two_ways_to_write_an_accent_are_one_text() -> None:
    composed, apart = "caf\N{LATIN SMALL LETTER E WITH ACUTE}", "cafe\N{COMBINING ACUTE ACCENT}"
    assert composed != apart
    (line,) = check([row(1, composed, "b"), row(2, apart, "b", "test")]).lines
    assert line.startswith("row 2: its query is that of row 1, which is trained on")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (row(1, "a", "b"), row(2, "b", "a", "test", task="u")),
        (row(1, "a", "b", "gate"), row(2, "a", "b", "test")),
    ],
)
def test_other_pairs_in_two_splits_are_named(first: OwnRow, second: OwnRow) -> None:
    faults = check([first, second])
    expected = f"1 pair in more than one split: row 1 ({first.split}), row 2 (test)."
    assert (faults.lines, faults.notices) == ((), (expected,))


def test_pictures_are_equal_by_their_pixels() -> None:
    image, data = Image.open(io.BytesIO(picture(1))), io.BytesIO()
    image.save(data, "PNG")
    assert data.getvalue() != picture(1)
    assert content_digests("A", {"q0.png": data.getvalue()}) == content_digests(
        "a", {"q0.webp": picture(1)}
    )
    assert content_digests("a", {"q0.webp": picture(2)}) != content_digests(
        "a", {"q0.webp": picture(1)}
    )


def test_a_pair_under_many_concepts_is_judged_by_none_that_saw_it(tmp_path: Path) -> None:
    """Eight names of one pair would fall into both folds."""
    rows = [
        flag_rows()[0] | {"id": f"flag-{n}", "concept": f"name {n}", "task": f"task-{n}"}
        for n in range(8)
    ]
    (tmp_path / "flags").mkdir()
    (tmp_path / "flags/00.webp").write_bytes(picture(0))
    assert prepare(write_csv(tmp_path / "t.csv", rows), tmp_path, tmp_path / "out") == 0
    entries = ShardIndex.open(tmp_path / "out/pairs/plain").entries
    assert len({entry.meta["concept"] for entry in entries}) == 8
    assert len({entry.meta["fold"] for entry in entries}) == 1
