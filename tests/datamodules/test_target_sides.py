"""Targets and candidates as what a writer is asked about; which side of which task."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from callbacks import SidecarWriter
from datamodules import PairDataModule, SideDataModule
from datamodules.samples import SampleReader, rows_of
from datamodules.sidecars import RationaleTable
from lightning_modules import RationaleGenerator
from mmemb.records.inputs import Side
from mmemb.records.rationales import GREEDY
from mmemb.storage.shard_index import ShardIndex
from tests.fixtures.tiny_data import CONTINENTS, write_tiny
from tests.fixtures.tiny_sidecars import write_tiny_rationales
from tests.fixtures.tiny_trainer import trainer_of
from tests.mmemb.rationales.test_draft_cache import Scribe

PAIRS = ("pairs/plain", "pairs/questions")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


def asked(root: Path, folders: Sequence[str], **changes: Any) -> dict[str, Side]:
    """Key -> what a writer is asked, of the rows that it is asked about."""
    data = SideDataModule(str(root), list(folders), 6, **changes)
    rows = [pair for b in data.predict_dataloader() for pair in zip(b.keys, b.sides, strict=True)]
    return {key: side for key, side in rows if side != Side()}


def tasks(keys: Sequence[str]) -> set[str]:
    return {key.rsplit("-", 2 if "capital" in key else 1)[0] for key in keys}


def test_targets_of_pairs(root: Path) -> None:
    found = asked(root, PAIRS, side="target")
    reader, index = SampleReader(pixels=False), ShardIndex.open(root / PAIRS[0])
    for row in rows_of(index):
        assert found[row.entry.key] == reader.pair(row).target
        assert found[row.entry.key] != reader.query_side(row)
    assert len(found) == sum(len(ShardIndex.open(root / name).entries) for name in PAIRS)
    assert all(media.pixels is None for side in found.values() for media in side.media)
    seen = asked(root, PAIRS, side="target", decode=True)
    assert all(media.pixels is not None for side in seen.values() for media in side.media)


def test_candidates_are_seen_without_their_names(root: Path) -> None:
    found = asked(root, ["candidates"], side="target")
    assert len(found) == len(ShardIndex.open(root / "candidates").entries)
    assert {side.text for side in found.values()} == {"", *CONTINENTS}


@pytest.mark.parametrize(
    ("side", "wanted"),
    [
        ("query", {"flag-continent", "flag-capital-t2i"}),
        ("target", {"flag-name", "flag-continent"}),
    ],
)
def test_every_task_has_its_sides(root: Path, side: str, wanted: set[str]) -> None:
    sides = {"flag-name": "target", "clip-name": "none", "flag-capital-t2i": "query"}
    assert tasks(asked(root, PAIRS, side=side, sides=sides)) == wanted
    if side == "query":
        index = ShardIndex.open(root / "queries")
        found = asked(root, ["queries"], sides=sides)
        assert {index.by_key[key].meta["task"] for key in found} == wanted
    else:
        index = ShardIndex.open(root / "candidates")
        found = asked(root, ["candidates"], side=side, sides=sides)
        galleries = {index.by_key[key].meta["gallery"] for key in found}
        assert galleries == {"flags", "continents"}


def test_tasks_choose_among_targets_too(root: Path) -> None:
    found = asked(root, [*PAIRS, "candidates"], side="target", tasks=["flag-continent"])
    index = ShardIndex.open(root / "candidates")
    pairs = [key for key in found if key not in index.by_key]
    assert tasks(pairs) == {"flag-continent"}
    assert len(found) - len(pairs) == len(CONTINENTS)


def test_parts_are_those_of_pairs(root: Path) -> None:
    """A candidate is ranked in every part."""
    found = asked(root, [*PAIRS, "candidates"], side="target", splits=["test"])
    assert set(found) == set(ShardIndex.open(root / "candidates").by_key)


@pytest.mark.parametrize(
    ("folders", "changes", "message"),
    [
        (
            ["queries"],
            {"side": "target"},
            "sample 00000000 is one of queries, which have no target",
        ),
        (["candidates"], {}, "sample 00000000 is one of candidates, no queries"),
        (["pairs/plain"], {"side": "both"}, "side 'both': expected one of query, target"),
        (["pairs/plain"], {"sides": {"flag-name": "all"}}, r"sides \['all'\]: expected some of"),
        (["pairs/plain"], {"sides": {"flag": "none"}}, r"sides names unknown task\(s\) \['flag'\]"),
        (
            ["candidates"],
            {"side": "target", "tasks": ["flag"]},
            r"Unknown task\(s\) \['flag'\]; .*'clip-name'",
        ),
    ],
    ids=["queries", "candidates", "side", "sides", "task", "tasks"],
)
def test_mistakes_are_one_clear_error(
    root: Path, folders: list[str], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        asked(root, folders, **changes)


def test_nobody_learns_to_write_from_targets(root: Path) -> None:
    data = SideDataModule(str(root), ["pairs/plain"], 4, side="target", rationales="anything")
    with pytest.raises(ValueError, match=r"set data\.side to query"):
        data.train_dataloader()


def test_targets_are_trained_with_their_own_draws(root: Path, tmp_path: Path) -> None:
    """Nothing of theirs was selected, so all candidates count; and who gets which has nothing to
    do with what the query gets."""
    selected = write_tiny_rationales(root, tmp_path / "selected", scored=True)
    unscored = write_tiny_rationales(root, tmp_path / "targets")
    data = PairDataModule(
        str(root), ["pairs/questions"], 8, 8, {}, 0, str(selected), target_sidecar=str(unscored),
        unselected_fraction=0.5,
    )  # fmt: skip
    drawn = [
        (query.answer, target.answer)
        for batch in islice(data.train_dataloader(), 40)
        for query, target in zip(batch.rationales, batch.target_rationales, strict=True)
    ]
    wrong = {"country-xx", "country-yy"}
    for is_prior in (True, False):
        share = mean(t in wrong for q, t in drawn if (q in wrong) is is_prior)
        assert share == pytest.approx(5 / 6, abs=0.1)


def test_the_sidecar_mirrors_pairs_and_candidates(root: Path, tmp_path: Path) -> None:
    """Training targets get samples, candidates what a test gets; a query's draws serve a target
    that holds the same."""
    folders, folder = ["pairs/plain", "candidates"], str(tmp_path / "target_rationales")
    module = RationaleGenerator({"s": Scribe()}, num_drafts=5, seed_by="content")
    data = SideDataModule(str(root), folders, 8, side="target")
    trainer = trainer_of(tmp_path, callbacks=[SidecarWriter(folder)])
    trainer.predict(module, datamodule=data, return_predictions=False)
    written, sources = ShardIndex.open(folder), [ShardIndex.open(root / name) for name in folders]
    assert [e.key for e in written.entries] == [e.key for s in sources for e in s.entries]
    table = RationaleTable(folder, sources)
    for source in sources:
        for row in rows_of(source):
            text = json.loads(source.read(row.entry)["json"]).get("target_text", "")
            if "source" not in row.meta:
                text = json.loads(source.read(row.entry)["json"])["text"]
            drawn = table.read_rationales(row)
            assert bool(drawn) == bool(text), "the writer reads no picture"
            assert all(rationale.thinking == text for rationale in drawn)
            if text and "source" not in row.meta:
                assert [rationale.seed for rationale in drawn] == [GREEDY]
    assert module.counts["of equal sides"] == 5 * 8 - 5 * len(CONTINENTS)
    assert module.counts["drawn"] == 5 * 8 + len(CONTINENTS)
