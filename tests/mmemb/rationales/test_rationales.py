"""What every writer owes its callers: folding, the table, the control, pools, settings."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from mmemb.rationales import (
    NO_DRAW,
    LanguageModelWriter,
    PlaceboWriter,
    PrecomputedWriter,
    RationaleWriter,
    TableWriter,
    load_writer,
    merge_drafts,
    write_pool,
)
from mmemb.rationales.writers.pool import pool_identity
from mmemb.records.inputs import Side
from mmemb.records.rationales import GREEDY, SHORT, UNKNOWN, Rationale
from tests.fixtures.paths import POCKET_PROMPT


def rationale(text: str, seed: int = 1, **kwargs: Any) -> Rationale:
    fields = {"writer": "w", "model": "m", "revision": "r", "prompt": "p", "decoding": "d"}
    return Rationale(text=text, seed=seed, num_tokens=9, **fields | kwargs)


def test_folding_merges_drops_and_counts() -> None:
    good = "<think>a</think><answer>b</answer>"
    pool = [
        rationale(good, 1),
        rationale("<think>a", 2),
        rationale(good, GREEDY),
        rationale(good, 3, writer="other"),
        rationale("<answer>b</answer>", 4),
        rationale("<answer>b</answer>", 5, depth=SHORT),
        replace(rationale(good.replace("b", "c"), 6), num_tokens=97),
        rationale("<think></think><answer>of others</answer>", 7, provenance=UNKNOWN),
    ]
    kept, dropped = merge_drafts(pool, max_tokens=96)
    assert [(r.writer, r.seed, r.count) for r in kept] == [
        ("w", GREEDY, 2), ("other", 3, 1), ("w", 5, 1), ("w", 7, 1),
    ]  # fmt: skip
    assert dropped == {"malformed": 2, "over_long": 1}


@pytest.fixture
def facts(tmp_path: Path) -> str:
    path = tmp_path / "facts.json"
    countries = {"fr": {"name": "France"}}
    path.write_text(json.dumps({"countries": countries, "questions": {"capital Paris": "fr"}}))
    return str(path)


def test_the_table_answers_what_it_knows(facts: str) -> None:
    sides = [Side(text="capital Paris"), Side(text="capital Oslo")]
    known, unknown = TableWriter(facts).write(sides, torch.tensor([[GREEDY, 4], [GREEDY, 4]]))
    assert [r.answer for r in known] == ["France", "France"]
    assert {r.writer for r in known} == {"table"}
    assert unknown == []
    assert len(merge_drafts(known)[0]) == 1


def test_a_broken_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no table of facts"):
        TableWriter(str(tmp_path / "facts.json"))
    (tmp_path / "facts.json").write_text('{"questions": {"a": "fr"}, "countries": {}}')
    with pytest.raises(ValueError, match=r"facts\.json cannot be used"):
        TableWriter(str(tmp_path / "facts.json"))


TEXTS = [Side(text=name) for name in ("a", "b", "c")]
POOL = {s.digest: tuple(rationale(f"<think>{s.text}</think>", k) for k in (1, 2)) for s in TEXTS}


def test_foreign_rationales_come_from_others(tmp_path: Path) -> None:
    write_pool(tmp_path / "pool.json", POOL)
    control = PlaceboWriter(str(tmp_path / "pool.json"))
    written = control.write(TEXTS, torch.tensor([[GREEDY, 3, 4]] * 3))
    assert written == control.write(TEXTS, torch.tensor([[GREEDY, 3, 4]] * 3))
    for side, pool in zip(TEXTS, written, strict=True):
        assert all(r.thinking != side.text and r.writer == "foreign" for r in pool)
    write_pool(tmp_path / "own.json", {TEXTS[0].digest: POOL[TEXTS[0].digest]})
    alone = PlaceboWriter(str(tmp_path / "own.json"))
    with pytest.raises(ValueError, match="holds no rationale that is a placebo"):
        alone.write(TEXTS[:1], torch.tensor([[1]]))


def test_precomputed_rationales_are_found_by_content(tmp_path: Path) -> None:
    stranger, path = Side(text="d"), str(tmp_path / "pool.json")
    write_pool(path, POOL)
    writer = PrecomputedWriter(path, "empty")
    written = writer.write([TEXTS[1], stranger], torch.tensor([[2, GREEDY], [1, NO_DRAW]]))
    assert [(r.thinking, r.seed) for r in written[0]] == [("b", 2), ("b", 1)]
    assert written[1] == []
    with pytest.raises(ValueError, match="No rationale was written"):
        PrecomputedWriter(path).write([stranger], torch.tensor([[1]]))


def test_writers_come_back_from_their_settings(tmp_path: Path, facts: str) -> None:
    write_pool(tmp_path / "pool.json", POOL)
    path = str(tmp_path / "pool.json")
    writers: list[RationaleWriter] = [
        LanguageModelWriter("org/model", str(POCKET_PROMPT), batch_size=7),
        TableWriter(facts),
        PlaceboWriter(path),
        PrecomputedWriter(path),
    ]
    for saved in writers:
        loaded = load_writer(json.loads(json.dumps(saved.spec())))
        assert type(loaded) is type(saved)
        assert loaded.spec() == saved.spec()
    assert load_writer(PrecomputedWriter(path).spec()).pool == POOL
    assert pool_identity(POOL) == PrecomputedWriter(path).identity()


@pytest.mark.parametrize(
    "settings",
    [
        {"class_path": "subprocess.Popen", "init_args": {"args": "true"}},
        {"class_path": "mmemb.rationales.RationaleWriter"},
        {"class_path": "mmemb.rationales.write_pool"},
        {"class_path": "mmemb.rationales.writers.table.TableWriter"},
        {"class_path": "mmemb.rationales.TableWriter", "init_args": {"fact": "x"}},
        {},
    ],
)
def test_settings_name_our_writers_only(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="class_path|unknown key"):
        load_writer(settings)


@given(st.lists(st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "a", " ", "\n"])))
def test_tags_enclose_what_the_shortest_match_would(parts: list[str]) -> None:
    text = "".join(parts)
    found = Rationale(text, "a", "b", "c", "d", "e", 0, 1)
    thought = re.search("<think>(.*?)</think>", text, re.DOTALL)
    first = "<think>" in text.partition("<answer>")[0]
    tagged = re.compile("<answer>(.*?)</answer>", re.DOTALL)
    answer = tagged.search(text, thought.end() if thought and first else 0)
    assert found.thinking == (thought[1].strip() if thought else "")
    assert found.answer == (answer[1].strip() if answer else "")


def test_an_answer_begins_behind_the_thought() -> None:
    thought = "<think>I write it in <answer>, or in <answer>tags</answer>.</think>"
    assert rationale(f"{thought}<answer>Peru</answer>").answer == "Peru"
    assert rationale(thought).answer == ""
    assert rationale("<answer>a <think>b</think></answer>").answer == "a <think>b</think>"


@pytest.mark.parametrize("tag", ["<think>", "<answer>", "</think>", "<think></answer>"])
def test_tags_that_never_close_are_read_once(tag: str) -> None:
    """A regular expression takes the square of their number: a minute."""
    assert not Rationale(tag * 50_000, "a", "b", "c", "d", "e", 0, 1).plain
