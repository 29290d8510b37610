"""Sides for writers and pictures for the tower: complete, undecoded where possible, once each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from datamodules.media import MediaDataModule
from datamodules.sides import SideDataModule
from mmemb.records.inputs import Side
from mmemb.storage.shard_index import ShardIndex
from tests.fixtures.tiny_data import write_broken, write_tiny
from tests.fixtures.tiny_sidecars import write_tiny_rationales

ALL = ("pairs/plain", "pairs/questions", "queries", "candidates")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_tiny(tmp_path_factory.mktemp("tiny"))
    write_tiny_rationales(root, root / "rationales")
    return root


def sides(root: Path, **changes) -> SideDataModule:
    arguments = {"root": str(root), "folders": ["pairs/questions", "queries"], "batch_size": 6}
    return SideDataModule(**(arguments | changes))


def test_sides_keep_keys_and_never_decode(root):
    batches = list(sides(root).predict_dataloader())
    for folder in ("pairs/questions", "queries"):
        index = ShardIndex.open(root / folder)
        for shard in index.shard_names:
            keys = [key for b in batches if b.shard == shard for key in b.keys]
            assert keys == [entry.key for entry in index.of_shard(shard)]
    media = [m for batch in batches for side in batch.sides for m in side.media]
    assert media
    assert all(m.pixels is None for m in media)
    assert batches[0].metas[0]["split"] == "train"


def test_sides_show_the_query_only(root):
    for batch in sides(root).predict_dataloader():
        for side, meta in zip(batch.sides, batch.metas, strict=True):
            if meta["task"] == "flag-capital-t2i":
                assert side.modalities == {"text"}
                assert "country-" not in side.text


def test_sides_decoded_for_writers_that_look(root):
    batches = sides(root, decode=True).predict_dataloader()
    assert any(m.pixels is not None for b in batches for side in b.sides for m in side.media)


def test_sides_of_other_parts_are_empty(root):
    for batch in sides(root, splits=["train", "test"]).predict_dataloader():
        for side, meta in zip(batch.sides, batch.metas, strict=True):
            assert (side == Side()) == (meta["split"] not in ("train", "test"))


def test_queries_of_other_tasks_are_empty(root):
    asked = {"flag-capital-t2i"}
    for batch in sides(root, tasks=sorted(asked)).predict_dataloader():
        for side, meta in zip(batch.sides, batch.metas, strict=True):
            assert (side == Side()) == ("source" not in meta and meta["task"] not in asked)
    with pytest.raises(ValueError, match=r"Unknown task\(s\) \['flag-capitol'\]; .*flag-capital"):
        sides(root, tasks=["flag-capitol"]).predict_dataloader()


def test_what_was_written_about_pairs(root):
    batches = list(sides(root, rationales=str(root / "rationales")).test_dataloader())
    assert sum(len(batch.pairs) for batch in batches) == 16
    assert batches[0].pairs[0].answers == (batches[0].rationales[0][0].rationale.answer,)
    with pytest.raises(ValueError, match=r"set data\.rationales"):
        list(sides(root).test_dataloader())


def test_shard_names_must_differ(root):
    with pytest.raises(ValueError, match=r"Shard name queries-000000\.tar occurs in"):
        sides(root, folders=["queries", "../" + root.name + "/queries"]).predict_shards()


def test_every_picture_once(root):
    module = MediaDataModule(str(root), list(ALL), batch_size=7)
    batches = list(module.predict_dataloader())
    digests = [media.digest for batch in batches for media in batch.media]
    entries = [entry for folder in ALL for entry in ShardIndex.open(root / folder).entries]
    assert sorted(digests) == sorted({d for entry in entries for d in entry.media.values()})
    assert set(module.predict_shards()) == {batch.shard for batch in batches}
    assert not any(name.startswith("questions") for name in module.predict_shards())  # seen before
    assert {media.kind for batch in batches for media in batch.media} == {"image", "frame"}


def test_pictures_can_be_reduced(root):
    module = MediaDataModule(str(root), ["candidates"], batch_size=7, image_size=10)
    for batch in module.predict_dataloader():
        assert {max(media.pixels.shape) for media in batch.media} == {10}


def test_broken_pictures(root, tmp_path, caplog):
    folder = str(write_broken(root, tmp_path))
    with pytest.raises(ValueError, match=r"sample 00000058, member q0\.webp"):
        list(MediaDataModule(folder, ["queries"], 4).predict_dataloader())
    batches = list(MediaDataModule(folder, ["queries"], 4, on_error="skip").predict_dataloader())
    assert sum(len(batch.media) for batch in batches) == 15
    assert "left out 1 sample(s)" in caplog.text


def test_tiny_data_is_the_same_everywhere(root, tmp_path):
    write_tiny(tmp_path)
    for folder in ALL:
        first, second = (path / folder / "manifest.json" for path in (root, tmp_path))
        assert json.loads(first.read_bytes()) == json.loads(second.read_bytes())
