"""Evaluation: candidates and queries, ragged ranks, whole shards for `predict`, policies."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy

from datamodules.evaluation import EvaluationDataModule
from mmemb.records.rationales import Rationale
from mmemb.storage.shard_index import ShardIndex
from mmemb.storage.shard_writer import (
    Sample,
    encode_members,
    finish_manifest,
    write_folder,
    write_shard,
)
from tests.fixtures.tiny_data import write_broken, write_tiny
from tests.fixtures.tiny_sidecars import write_tiny_features, write_tiny_rationales
from tests.fixtures.tiny_trainer import rank_of


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_tiny(tmp_path_factory.mktemp("tiny"))
    write_tiny_rationales(root, root / "rationales")
    write_tiny_features(root, root / "features")
    return root


def on_rank(module, rank: int, world: int):
    module.trainer = rank_of(rank, world)
    return module


def evaluation(root: Path, **changes) -> EvaluationDataModule:
    return EvaluationDataModule(
        **({"root": str(root), "batch_size": 8, "splits": ["test"]} | changes)
    )


def keys_of(loader) -> list[str]:
    return [query.key for batch in loader for query in batch.queries.queries]


def test_candidates_come_first_then_queries(root):
    candidates, queries = evaluation(root, rationales=str(root / "rationales")).test_dataloader()
    galleries = Counter(c.gallery for batch in candidates for c in batch.candidates.candidates)
    assert galleries == {"flags": 24, "continents": 3, "clips": 24}
    batches = list(queries)
    found = {query.key: query for batch in batches for query in batch.queries.queries}
    assert len(found) == 24
    assert {query.split for query in found.values()} == {"test"}
    for batch in batches:
        asked = batch.queries
        for query, rationales in zip(asked.queries, asked.rationales, strict=True):
            assert len(rationales) == (3 if query.task == "flag-capital-t2i" else 0)
            assert all(isinstance(rationale, Rationale) for rationale in rationales)
            assert set(query.relevance.values()) == {1.0}


def test_tasks_and_galleries_are_selected(root):
    module = evaluation(root, tasks=["flag-continent"], splits=["gate", "test"])
    candidates, queries = module.val_dataloader()
    found = [query for batch in queries for query in batch.queries.queries]
    assert {(query.task, query.split) for query in found} == {
        ("flag-continent", "gate"),
        ("flag-continent", "test"),
    }
    assert found[0].side.modalities == {"text", "image"}
    assert {c.gallery for batch in candidates for c in batch.candidates.candidates} == {
        "continents"
    }


def test_unknown_task(root):
    with pytest.raises(ValueError, match=r"Unknown task\(s\) \['flag'\]; tasks.json has \['clip"):
        evaluation(root, tasks=["flag"]).test_dataloader()


def test_no_tasks_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tasks\.json is missing"):
        evaluation(tmp_path).test_dataloader()


@pytest.mark.parametrize("world", [1, 2, 5])
def test_every_query_is_on_one_rank(root, world):
    parts = [on_rank(evaluation(root), rank, world).test_dataloader() for rank in range(world)]
    whole = keys_of(evaluation(root).test_dataloader()[1])
    assert sorted(key for _, queries in parts for key in keys_of(queries)) == sorted(whole)
    candidates = [
        c.key for loader, _ in parts for batch in loader for c in batch.candidates.candidates
    ]
    assert len(candidates) == len(set(candidates)) == 51


@pytest.mark.parametrize("world", [1, 2, 5])
def test_predict_reads_whole_shards_and_all_candidates(root, world):
    seen: list[str] = []
    for rank in range(world):
        module = on_rank(evaluation(root, splits=None), rank, world)
        candidates, queries = module.predict_dataloader()
        shards = list(dict.fromkeys(batch.queries.shard for batch in queries))
        assert shards == list(module.predict_shards())[rank::world]
        if shards:
            assert sum(len(batch.candidates.candidates) for batch in candidates) == 51
        seen += keys_of(queries)
    assert sorted(seen) == [e.key for e in ShardIndex.open(root / "queries").entries]


def test_predict_reads_only_shards_in_which_a_query_was_asked_for(root):
    index = ShardIndex.open(root / "queries")
    entry = index.entries[-1]
    wanted = {"splits": [entry.meta["split"]], "tasks": [entry.meta["task"]]}
    asked = {
        e.shard
        for e in index.entries
        if [[e.meta["split"]], [e.meta["task"]]] == [*wanted.values()]
    }
    candidates, queries = evaluation(root, **wanted).predict_dataloader()
    assert 0 < len(asked) < len(index.shard_names), "or this test shows nothing"
    assert keys_of(queries) == [e.key for e in index.entries if e.shard in asked]


def test_predict_can_skip_no_query(root):
    with pytest.raises(ValueError, match="on_error 'skip'.*can skip none"):
        evaluation(root, on_error="skip").predict_dataloader()


@pytest.mark.parametrize("world", [1, 2])
def test_only_pending_shards_are_predicted(root, world):
    pending = ["queries-000001.tar", "queries-000003.tar"]
    found = []
    for rank in range(world):
        module = on_rank(evaluation(root, splits=None), rank, world)
        module.pending_shards = pending
        queries = module.predict_dataloader()[1]
        found.append(list(dict.fromkeys(batch.queries.shard for batch in queries)))
    assert found == [pending[rank::world] for rank in range(world)]


# Lightning's own trees
LEAF = "ignore:.isinstance.treespec, LeafSpec:FutureWarning"


class Counting(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[int, int]] = []
        self.ended = 0

    def predict_step(self, batch: object, batch_idx: int, dataloader_idx: int = 0) -> str:
        self.found.append((dataloader_idx, batch_idx))
        return "done"

    def test_step(self, batch: object, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.found.append((dataloader_idx, batch_idx))

    def on_test_epoch_end(self) -> None:
        total = torch.tensor(len(self.found))
        self.ended = int(self.trainer.strategy.reduce(total, reduce_op="sum"))

    def on_predict_end(self) -> None:
        self.ended += 1


def quiet_trainer(folder: Path, **options) -> Trainer:
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
        **options,
    )


@pytest.mark.filterwarnings(LEAF)
@pytest.mark.parametrize("pending", [None, ["queries-000002.tar"], []])
def test_lightning_predicts_what_is_pending(root, tmp_path, pending):
    module, data = Counting(), evaluation(root, splits=None)
    data.pending_shards = pending
    quiet_trainer(tmp_path).predict(module, datamodule=data, return_predictions=False)
    expected = {None: 4 * 2, 1: 2, 0: 0}[pending if pending is None else len(pending)]
    assert sum(loader == 1 for loader, _ in module.found) == expected
    assert module.ended == 1  # whoever writes sidecars finishes its manifest here


@pytest.mark.filterwarnings(LEAF)
def test_a_rank_without_rows_still_joins_the_others(root, tmp_path):
    """Two ranks, one continent query and three candidates: rank 1 has no query."""
    one = tmp_path / "one"
    (one / "candidates").parent.mkdir()
    for folder in ("candidates", "tasks.json"):
        (one / folder).symlink_to(root / folder)
    index = ShardIndex.open(root / "queries")
    entry = next(e for e in index.entries if e.meta["task"] == "flag-continent")
    sample = Sample(entry.key, index.read(entry), entry.meta)
    write_folder(one / "queries", [sample], prefix="q", samples_per_shard=1, fingerprint="")
    module = Counting()
    module.weight = torch.nn.Parameter(torch.zeros(1))
    strategy = DDPStrategy(process_group_backend="gloo", start_method="fork")
    trainer = quiet_trainer(tmp_path, strategy=strategy, devices=2)
    found = tmp_path / "found"
    module.on_test_end = lambda: Path(f"{found}{trainer.global_rank}").write_text(str(module.ended))
    trainer.test(module, datamodule=evaluation(one, splits=[entry.meta["split"]], batch_size=1))
    assert [Path(f"{found}{rank}").read_text() for rank in range(2)] == ["4", "4"]


def test_features_instead_of_pixels(root, monkeypatch):
    monkeypatch.setattr("datamodules.samples.decode_image", None)
    candidates, queries = evaluation(root, features=str(root / "features")).test_dataloader()
    sides = [c.side for b in candidates for c in b.candidates.candidates] + [
        q.side for b in queries for q in b.queries.queries
    ]
    media = [m for side in sides for m in side.media]
    assert media
    assert all(m.pixels is None and m.features.shape == (2, 8) for m in media)


def test_on_error(root, tmp_path, caplog):
    folder = write_broken(root, tmp_path)
    with pytest.raises(ValueError, match=r"q-000003\.tar, sample 00000058"):
        keys_of(evaluation(folder).test_dataloader()[1])
    kept = keys_of(evaluation(folder, on_error="skip").test_dataloader()[1])
    assert len(kept) + 1 == len(keys_of(evaluation(root).test_dataloader()[1]))
    assert "left out 1 sample(s), 1 so far: " in caplog.text
    assert "sample 00000058, member q0.webp" in caplog.text


def test_local_candidates_and_grades(root, tmp_path):
    data = {
        **dict.fromkeys(("concept", "fact", "instruction", "text"), "x"),
        **{"task": "flag-name", "split": "test"},
        "relevance": {"a": 2, "b": 0.5},
        "answers": [],
    }
    members = encode_members({"json": data, "candidates.npy": np.array([4, 2], np.int32)})
    meta = {"task": "flag-name", "split": "test", "gallery": "flags"}
    (tmp_path / "candidates").symlink_to(root / "candidates")
    (tmp_path / "tasks.json").symlink_to(root / "tasks.json")
    write_folder(
        tmp_path / "queries",
        [Sample("00000000", members, meta)],
        prefix="q",
        samples_per_shard=1,
        fingerprint="",
    )
    (query,) = (q for b in evaluation(tmp_path).test_dataloader()[1] for q in b.queries.queries)
    assert query.candidates == (4, 2)
    assert query.relevance == {"a": 2.0, "b": 0.5}


def test_workers_read_the_same(root):
    with_workers = evaluation(root, num_workers=1).test_dataloader()[1]
    assert keys_of(with_workers) == keys_of(evaluation(root).test_dataloader()[1])


def write_prompt_states(root: Path, folder: Path, prompt_state: bytes) -> None:
    """Rationales of the queries, with a prompt state of every second one."""
    index = ShardIndex.open(root / "queries")
    for shard in index.shard_names:
        samples = []
        for entry in index.of_shard(shard):
            members = {"json": b"[]"} | (
                {} if int(entry.key) % 2 else {"prompt_state.npy": prompt_state}
            )
            samples.append(Sample(entry.key, members))
        origins = [index.origin(shard)]
        write_shard(folder, shard, samples, fingerprint="f", made_from=origins)
    finish_manifest(folder, "f", index.shard_names)


def test_prompt_states_travel_with_their_queries(root, tmp_path):
    write_prompt_states(
        root, tmp_path, encode_members({"npy": np.array([1, 2], np.float16)})["npy"]
    )
    batches = list(evaluation(root, rationales=str(tmp_path)).test_dataloader()[1])
    for batch in (batch.queries for batch in batches):
        assert len(batch.prompt_states) == len(batch.queries)
        for query, prompt_state_H in zip(batch.queries, batch.prompt_states, strict=True):
            if int(query.key) % 2:
                assert prompt_state_H is None
            else:
                assert (prompt_state_H.tolist(), prompt_state_H.dtype) == ([1, 2], torch.float32)


@pytest.mark.parametrize("folder", [None, "rationales"])
def test_nobody_looked(root, folder):
    rationales = folder and str(root / folder)
    for batch in evaluation(root, rationales=rationales).test_dataloader()[1]:
        assert batch.queries.prompt_states == (None,) * len(batch.queries.queries)


def test_a_broken_prompt_state_names_its_member(root, tmp_path):
    write_prompt_states(root, tmp_path, b"junk")
    with pytest.raises(
        ValueError, match=r"queries-00000\d\.tar, sample \d+, member prompt_state\.npy"
    ):
        list(evaluation(root, rationales=str(tmp_path)).test_dataloader()[1])
