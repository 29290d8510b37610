"""Utilities: parts, ranks, resume, draws, joins."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from datamodules.utilities import UtilityDataModule
from mmemb.shard_writer import Sample, encode_members, finish_manifest, write_shard
from mmemb.shards import ShardIndex
from tests.tiny import write_tiny, write_tiny_rationales, write_tiny_utilities


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_tiny(tmp_path_factory.mktemp("tiny"))
    write_tiny_rationales(root, root / "rationales")
    write_tiny_utilities(root, root / "utilities")
    return root


def on_rank(module: UtilityDataModule, rank: int, world: int) -> UtilityDataModule:
    module.trainer = SimpleNamespace(global_rank=rank, world_size=world)
    return module


def utilities(root: Path, **changes) -> UtilityDataModule:
    arguments = {"root": str(root), "utilities": str(root / "utilities")}
    return UtilityDataModule(**(arguments | {"batch_size": 4, "seed": 0} | changes))


def test_gate_trains_on_its_part_and_resumes(root):
    stream = utilities(root).train_dataloader()
    batches = [next(stream) for _ in range(8)]
    for batch in batches:
        assert {meta["part"] for meta in batch.metas} == {"gate"}
        assert batch.inputs.embedding_BD.shape == (4, 4)
        assert batch.inputs.embedding_BD.dtype == torch.float32
        think_B = torch.tensor([meta["task"] == "flag-capital-t2i" for meta in batch.metas])
        assert torch.equal(batch.eligible_B, think_B)
        assert torch.equal(batch.utility_BA[:, 1] - batch.utility_BA[:, 0], think_B.float())
        assert torch.equal(batch.cost_BA[:, 1], 20.0 * think_B)
    assert {key for batch in batches[:4] for key in batch.keys} == {
        e.key for e in ShardIndex.open(root / "queries").entries if e.meta["part"] == "gate"
    }
    again = utilities(root).train_dataloader()
    again.load_state_dict({"batches": 5})
    assert next(again).keys == batches[5].keys


def test_utilities_are_split_over_ranks(root):
    whole = next(utilities(root).train_dataloader()).keys
    parts = [next(on_rank(utilities(root), r, 2).train_dataloader()).keys for r in range(2)]
    assert parts[0] + parts[1] == whole
    with pytest.raises(ValueError, match="split evenly over 3"):
        on_rank(utilities(root), 0, 3).train_dataloader()


def test_utilities_of_the_other_stages(root):
    module = utilities(root, rationales=str(root / "rationales"))
    calibration = list(module.val_dataloader())
    assert {meta["part"] for batch in calibration for meta in batch.metas} == {"calibration"}
    everything = list(module.predict_dataloader())
    assert [key for batch in everything for key in batch.keys] == [
        entry.key for entry in ShardIndex.open(root / "queries").entries
    ]
    assert {batch.shard for batch in everything} == set(module.predict_shards())
    assert len([q for b in module.test_dataloader()[1] for q in b.queries]) == 24
    assert {f.split("/")[0] for f in module.fitted_facts} == {f"country:{n}" for n in range(10, 18)}


def test_draws_are_averaged(root, tmp_path):
    index = ShardIndex.open(root / "queries")
    for shard in index.shard_names:
        data = {"eligible": True, "utility": [[-2], [-1, -3]], "cost": [[0], []]}
        members = encode_members({"json": data, "state.npy": np.zeros(2)})
        samples = [Sample(entry.key, members) for entry in index.of_shard(shard)]
        write_shard(tmp_path, shard, samples, fingerprint="f")
    finish_manifest(tmp_path, "f", index.shard_names)
    batch = next(iter(utilities(root, utilities=str(tmp_path)).predict_dataloader()))
    assert batch.utility_BA[0].tolist() == [-2, -2]
    assert batch.cost_BA[0, 0] == 0
    assert batch.cost_BA[0, 1].isnan()


def test_utilities_of_other_queries(root, tmp_path):
    with pytest.raises(ValueError, match="covers no shard of"):
        utilities(root, utilities=str(root / "pairs/plain")).train_dataloader()
    write_shard(tmp_path, "queries-000000.tar", [Sample("x", {"json": b"{}"})])
    finish_manifest(tmp_path, "", ["queries-000000.tar"])
    with pytest.raises(ValueError, match="expected key '00000000' at row 0, found 'x'"):
        utilities(root, utilities=str(tmp_path)).train_dataloader()
