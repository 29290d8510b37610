"""Rows that a sidecar holds nothing for: not asked about, failed, or nothing to say."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import LightningModule

from callbacks import SidecarWriter
from datamodules import PairDataModule, SelectionDataModule, SideDataModule
from datamodules.decode import DecodeError
from datamodules.negatives import NegativeTable
from datamodules.samples import Row, SampleReader, rows_of
from datamodules.teacher import TeacherTable
from lightning_modules import (
    CounterfactualSelector,
    HardNegativeMiner,
    RationaleGenerator,
    TeacherEmbedder,
)
from mmemb.records.row_marks import NOT_ASKED, failure_of, mark_of
from mmemb.storage.json_files import write_json
from mmemb.storage.shard_index import ShardIndex
from mmemb.storage.shard_writer import Sample, write_folder
from tests.fixtures.tiny_embedder import clip
from tests.fixtures.tiny_knower import Knower
from tests.fixtures.tiny_sidecars import write_tiny_rationales
from tests.fixtures.tiny_trainer import trainer_of
from tests.lightning_modules.test_counterfactual_selector import PlantedJudge

BROKEN = {
    "flag-name-00": "is no picture that is read",
    "clip-name-01": "cannot be decoded",
    "flag-continent-02": "missing required field `task`",
    "clip-name-03": "without a hole",
}
"""Key of a pair -> what is wrong with it."""


@pytest.fixture(scope="module")
def broken(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data with four broken pairs, each of which has a text on both sides."""
    root = tmp_path_factory.mktemp("broken")
    for name in ("candidates", "queries", "tasks.json"):
        (root / name).symlink_to(tiny_root / name)
    index = ShardIndex.open(tiny_root / "pairs/plain")
    samples = []
    for entry in index.entries:
        members = index.read(entry)
        if entry.key in BROKEN:
            members["json"] = json.dumps(
                json.loads(members["json"]) | {"target_text": "a"}
            ).encode()
        match entry.key:
            case "flag-name-00":
                members["t0.gif"] = members.pop("t0.webp")
            case "clip-name-01":
                members["t0.001.webp"] = b"junk"
            case "flag-continent-02":
                members["json"] = b"{}"
            case "clip-name-03":
                del members["t0.001.webp"]
        samples.append(Sample(entry.key, members, entry.meta))
    write_folder(root / "pairs/plain", samples, prefix="plain", samples_per_shard=8, fingerprint="")
    return root


def data(root: Path, **changes: Any) -> PairDataModule:
    settings: dict[str, Any] = {"pairs": ["pairs/plain"], "batch_size": 4, "group_size": 1}
    settings |= {"source_weights": {}, "seed": 0}
    return PairDataModule(str(root), **(settings | changes))


def predict(module: LightningModule, data: Any, folder: Path, run: Path) -> ShardIndex:
    trainer = trainer_of(run, callbacks=[SidecarWriter(str(folder))])
    trainer.predict(module, data, return_predictions=False)
    return ShardIndex.open(folder)


def check_failed(index: ShardIndex, root: Path) -> None:
    source = ShardIndex.open(root / "pairs/plain")
    assert [entry.key for entry in index.entries] == [entry.key for entry in source.entries]
    failures = {e.key: reason for e in index.entries if (reason := failure_of(e.meta))}
    assert set(failures) == set(BROKEN)
    assert all(said in failures[key] for key, said in BROKEN.items())
    assert not any(str(root) in reason for reason in failures.values())


def rows(root: Path) -> dict[str, Row]:
    return {row.entry.key: row for row in rows_of(ShardIndex.open(root / "pairs/plain"))}


def test_a_pair_that_is_broken_in_an_index_does_not_go_on_as_text(broken: Path) -> None:
    reader = SampleReader()
    for key, said in BROKEN.items():
        with pytest.raises(DecodeError, match=f"sample {key}.*{said}"):
            reader.pair(rows(broken)[key])

    with pytest.raises(DecodeError, match="sample "):
        list(islice(data(broken, on_error="raise").train_dataloader(), 16))
    trained = islice(data(broken).train_dataloader(), 32)
    assert not {key for batch in trained for key in batch.keys} & set(BROKEN)


def test_a_teacher_says_which_pairs_it_could_not_read(
    broken: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = TeacherEmbedder(clip(tmp_path).eval())
    index = predict(module, data(broken), tmp_path / "teacher", tmp_path)
    check_failed(index, broken)
    assert "left out 4 sample(s)" in caplog.text
    assert {name for e in index.entries for name in e.members if failure_of(e.meta)} == {"json"}

    table = TeacherTable(tmp_path / "teacher", [ShardIndex.open(broken / "pairs/plain")])
    assert table.read(rows(broken)["clip-name-00"]).shape[0] == 2
    with pytest.raises(DecodeError, match="could not be read when the sidecar was made .*hole"):
        table.read(rows(broken)["clip-name-03"])

    taught = data(broken, teacher=str(tmp_path / "teacher"))
    batches = islice(taught.train_dataloader(), 32)
    assert not {key for batch in batches for key in batch.keys} & set(BROKEN)


def test_no_negatives_are_mined_from_the_text_of_a_broken_pair(
    broken: Path, tmp_path: Path
) -> None:
    miner = HardNegativeMiner(clip(tmp_path).eval(), num_negatives=2, margin=None)
    mined = data(broken, with_candidates=True, batch_size=1)  # so that whole batches fail
    index = predict(miner, mined, tmp_path / "negatives", tmp_path)
    check_failed(index, broken)
    table = NegativeTable(
        tmp_path / "negatives",
        [ShardIndex.open(broken / "pairs/plain")],
        broken,
        SampleReader(),
        num=1,
        seed=0,
    )
    assert table.draw(rows(broken)["clip-name-00"], 0)
    with pytest.raises(DecodeError, match="could not be read when"):
        table.draw(rows(broken)["flag-name-00"], 0)


def test_rows_that_nobody_was_asked_about_are_marked(tiny_root: Path, tmp_path: Path) -> None:
    folders = ["pairs/questions", "queries"]
    asked = SideDataModule(
        str(tiny_root), folders, 8, splits=["train", "test"], tasks=["flag-continent"]
    )
    index = predict(
        RationaleGenerator({"knower": Knower()}), asked, tmp_path / "rationales", tmp_path
    )
    pools = {entry.key: json.loads(index.read(entry)["json"]) for entry in index.entries}
    marked = {entry.key for entry in index.entries if mark_of(entry.meta) == NOT_ASKED}
    silent = {key for key, pool in pools.items() if not pool} - marked
    assert marked == {
        entry.key
        for entry in index.entries
        if entry.meta["split"] not in ("train", "test")
        or ("source" not in entry.meta and entry.meta["task"] != "flag-continent")
    }
    assert marked
    assert silent, "queries by picture, which the writer cannot read: asked, and nothing to say"
    assert not any(pools[key] for key in marked)


def test_a_selection_hands_the_marks_down(tiny_root: Path, tmp_path: Path) -> None:
    folder = write_tiny_rationales(tiny_root, tmp_path / "rationales")
    index_file = folder / "questions-000000.index.json"
    record = json.loads(index_file.read_text())
    record["entries"][0]["meta"] = dict(NOT_ASKED)
    index_file.write_text(json.dumps(record))

    (tmp_path / "fitted").mkdir()
    settings = {"tau": 1.0, "eta": 0.0, "contrast": "gain", "min_placebo_rank": 0.0}
    write_json(tmp_path / "fitted/selection.json", settings | {"keep_share": 0.5})
    selector = CounterfactualSelector(PlantedJudge(), str(tmp_path / "fitted"), keep_share=0.5)
    pairs = SelectionDataModule(str(tiny_root), str(folder), 5, str(tmp_path / "scores"))
    index = predict(selector, pairs, tmp_path / "selected", tmp_path)
    assert [mark_of(entry.meta) for entry in index.entries] == [NOT_ASKED, *[{}] * 15]
