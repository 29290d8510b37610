"""Depth values: parts, ranks, resume, draws, joins."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules.depth_values import DepthValueDataModule
from mmemb.storage.json_files import write_json
from mmemb.storage.manifests import IndexEntry
from mmemb.storage.shard_index import ShardIndex
from mmemb.storage.shard_writer import Sample, encode_members, finish_manifest, write_shard
from tests.fixtures.tiny_data import write_tiny
from tests.fixtures.tiny_sidecars import write_tiny_depth_values, write_tiny_rationales
from tests.fixtures.tiny_trainer import rank_of


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_tiny(tmp_path_factory.mktemp("tiny"))
    write_tiny_rationales(root, root / "rationales")
    write_tiny_depth_values(root, root / "depth_values")
    return root


def on_rank(module: DepthValueDataModule, rank: int, world: int) -> DepthValueDataModule:
    module.trainer = rank_of(rank, world)
    return module


def depth_values(root: Path, **changes) -> DepthValueDataModule:
    arguments = {"root": str(root), "depth_values": str(root / "depth_values")}
    return DepthValueDataModule(**(arguments | {"batch_size": 4, "seed": 0} | changes))


def test_gate_trains_on_its_part_and_resumes(root):
    stream = depth_values(root).train_dataloader()
    batches = [next(stream) for _ in range(8)]
    for batch in batches:
        assert {meta["split"] for meta in batch.metas} == {"gate"}
        assert batch.inputs.embedding_BD.shape == (4, 4)
        assert batch.inputs.embedding_BD.dtype == torch.float32
        think_B = torch.tensor([meta["task"] == "flag-capital-t2i" for meta in batch.metas])
        assert torch.equal(batch.eligible_B, think_B)
        assert torch.equal(batch.depth_value_BA[:, 1] - batch.depth_value_BA[:, 0], think_B.float())
        assert torch.equal(batch.cost_BA[:, 1], 20.0 * think_B)
    assert {key for batch in batches[:4] for key in batch.keys} == {
        e.key for e in ShardIndex.open(root / "queries").entries if e.meta["split"] == "gate"
    }
    again = depth_values(root).train_dataloader()
    again.load_state_dict({"batches": 5})
    assert next(again).keys == batches[5].keys


def test_depth_values_are_split_over_ranks(root):
    whole = next(depth_values(root).train_dataloader()).keys
    parts = [next(on_rank(depth_values(root), r, 2).train_dataloader()).keys for r in range(2)]
    assert parts[0] + parts[1] == whole
    with pytest.raises(ValueError, match="split evenly over 3"):
        on_rank(depth_values(root), 0, 3).train_dataloader()


def test_depth_values_of_the_other_stages(root):
    module = depth_values(root, rationales=str(root / "rationales"))
    calibration = list(module.val_dataloader())
    assert {meta["split"] for batch in calibration for meta in batch.metas} == {"calibration"}
    everything = list(module.predict_dataloader())
    assert [key for batch in everything for key in batch.keys] == [
        entry.key for entry in ShardIndex.open(root / "queries").entries
    ]
    assert {batch.shard for batch in everything} == set(module.predict_shards())
    assert len([q for b in module.test_dataloader()[1] for q in b.queries.queries]) == 24
    for facts, numbers in (
        (module.trained_facts, range(10, 14)),
        (module.calibrated_facts, range(14, 18)),
    ):
        assert {fact.split("/")[0] for fact in facts} == {f"country:{n}" for n in numbers}


def labels(entry: IndexEntry) -> dict[str, str]:
    return {name: entry.meta[name] for name in ("task", "split", "concept")}


def test_draws_are_averaged(root, tmp_path):
    index = ShardIndex.open(root / "queries")
    for shard in index.shard_names:
        data = {"eligible": True, "depth_value": [[-2], [-1, -3]], "cost": [[0], []]}
        data["depths"] = ["direct", "full"]
        samples = [
            Sample(e.key, encode_members({"json": data | labels(e), "direct.npy": np.zeros(2)}))
            for e in index.of_shard(shard)
        ]
        origins = [index.origin(shard)]
        write_shard(tmp_path, shard, samples, fingerprint="f", made_from=origins)
    finish_manifest(tmp_path, "f", index.shard_names)
    batch = next(iter(depth_values(root, depth_values=str(tmp_path)).predict_dataloader()))
    assert batch.depth_value_BA[0].tolist() == [-2, -2]
    assert batch.cost_BA[0, 0] == 0
    assert batch.cost_BA[0, 1].isnan()


def test_depth_values_of_other_queries(root, tmp_path):
    with pytest.raises(ValueError, match="covers no shard of"):
        depth_values(root, depth_values=str(root / "pairs/plain")).train_dataloader()
    write_shard(tmp_path, "queries-000000.tar", [Sample("x", {"json": b"{}"})])
    finish_manifest(tmp_path, "", ["queries-000000.tar"])
    with pytest.raises(ValueError, match="expected key '00000000' at row 0, found 'x'"):
        depth_values(root, depth_values=str(tmp_path)).train_dataloader()


@pytest.mark.parametrize("data", [b"[]", b"{}", b'{"eligible": true}'])
def test_a_row_that_is_not_as_written_names_its_sample(root, tmp_path, data):
    source = ShardIndex.open(root / "depth_values")
    for shard in source.shard_names:
        rows = [
            Sample(entry.key, dict(source.read(entry)) | {"json": data}, entry.meta)
            for entry in source.of_shard(shard)
        ]
        write_shard(tmp_path, shard, rows, made_from=source.records[shard].made_from)
    finish_manifest(tmp_path, "", source.shard_names)
    with pytest.raises(
        ValueError, match=r"sample 0000.*member json: .*(Expected `object`|required field)"
    ):
        next(depth_values(root, depth_values=str(tmp_path)).train_dataloader())


def test_depth_values_of_some_shards_serve_the_parts_that_lie_there(root, tmp_path):
    source, first = ShardIndex.open(root / "depth_values"), "queries-000000.tar"
    rows = [Sample(entry.key, source.read(entry), entry.meta) for entry in source.of_shard(first)]
    write_shard(tmp_path, first, rows, made_from=source.records[first].made_from)
    finish_manifest(tmp_path, "", [first])
    module = depth_values(root, depth_values=str(tmp_path))
    assert module.predict_shards() == (first,)
    with pytest.raises(ValueError, match=r"does not cover .*a query of split gate.*data\.splits"):
        module.train_dataloader()


# ---- what a gate may see

PROMPT_STATE = np.arange(5, dtype=np.float16)


def encoded(members: dict[str, Any]) -> dict[str, bytes]:
    """Members as bytes; what is bytes already stays."""
    raw = {name: value for name, value in members.items() if isinstance(value, bytes)}
    return raw | encode_members({k: v for k, v in members.items() if k not in raw})


def rewritten(root: Path, folder: Path, change: Callable[[IndexEntry, dict[str, Any]], None]):
    """The depth values with other members; `change` gets them with their JSON decoded."""
    index, queries = ShardIndex.open(root / "depth_values"), ShardIndex.open(root / "queries")
    for shard in index.shard_names:
        samples = []
        for entry in index.of_shard(shard):
            members = index.read(entry)
            found = {"json": json.loads(members.pop("json"))}
            change(queries.by_key[entry.key], found)
            samples.append(Sample(entry.key, members | encoded(found)))
        origins = index.records[shard].made_from
        write_shard(folder, shard, samples, fingerprint="f", made_from=origins)
    finish_manifest(folder, "f", index.shard_names)
    return depth_values(root, depth_values=str(folder), batch_size=2)


def with_state(entry: IndexEntry, members: dict[str, Any]) -> None:
    members["json"]["scores"] = [-1.0, 0.5, 0.7]
    if members["json"]["eligible"]:
        members["prompt_state.npy"] = PROMPT_STATE + int(entry.key)


def test_parts_are_read_and_a_row_without_a_prompt_state_is_zero(root, tmp_path):
    module = rewritten(root, tmp_path, with_state)
    batches = list(module.predict_dataloader())
    assert any(not batch.eligible_B.any() for batch in batches), "or this test shows little"
    for batch in batches:
        number_B = torch.tensor([int(key) for key in batch.keys])
        expected_BH = (torch.arange(5.0) + number_B[:, None]) * batch.eligible_B[:, None]
        assert torch.equal(batch.inputs.prompt_state_BH, expected_BH)
        assert batch.inputs.scores_B3[0].tolist() == pytest.approx([-1, 0.5, 0.7])
        assert batch.inputs.state(["embedding", "scores", "prompt_state"]).shape == (
            len(number_B),
            12,
        )


def test_a_head_is_standardised_with_eligible_rows_of_the_gate_part(root, tmp_path):
    found = rewritten(root, tmp_path, with_state).gate_inputs()
    eligible = [
        int(entry.key)
        for entry in ShardIndex.open(root / "queries").entries
        if entry.meta["split"] == "gate" and entry.meta["task"] == "flag-capital-t2i"
    ]
    assert found.prompt_state_BH[:, 0].tolist() == eligible
    assert found.embedding_BD.shape == (4, 4)
    assert found.scores_B3.shape == (4, 3)


def test_depth_values_without_scores_and_prompt_state_have_width_0(root, tmp_path):
    module = rewritten(root, tmp_path, lambda _, members: members["json"].pop("scores", None))
    inputs = next(module.train_dataloader()).inputs
    assert (inputs.scores_B3.shape, inputs.prompt_state_BH.shape) == ((2, 0), (2, 0))


def test_a_row_that_was_measured_of_another_query_is_refused(root, tmp_path):
    def change(entry: IndexEntry, members: dict[str, Any]) -> None:
        members["json"]["concept"] = "country:xx"

    with pytest.raises(ValueError, match=r"the index says concept '.*', the json 'country:xx'"):
        next(rewritten(root, tmp_path, change).train_dataloader())


@pytest.mark.parametrize("value", [nan, inf])
def test_a_number_that_is_not_finite_names_its_sample(root, tmp_path, value):
    """One NaN would spread to all weights."""

    def change(entry: IndexEntry, members: dict[str, Any]) -> None:
        members["json"]["depth_value"][0][0] = value
        members["json"] = json.dumps(members["json"]).encode()

    with pytest.raises(ValueError, match=r"sample .*member json: (NaN|Infinity) is no number"):
        next(rewritten(root, tmp_path, change).train_dataloader())


def test_prompt_states_of_two_widths_name_the_folder(root, tmp_path):
    def change(entry: IndexEntry, members: dict[str, Any]) -> None:
        members["prompt_state.npy"] = PROMPT_STATE[: 3 + int(entry.key) % 2]

    module = rewritten(root, tmp_path, change)
    with pytest.raises(ValueError, match=r"expected a state of one width.*makes the folder again"):
        next(iter(module.predict_dataloader()))


def test_a_broken_prompt_state_names_its_sample(root, tmp_path):
    def change(entry: IndexEntry, members: dict[str, Any]) -> None:
        members["prompt_state.npy"] = b"junk"

    module = rewritten(root, tmp_path, change)
    with pytest.raises(ValueError, match=r"sample 00000000 cannot be decoded.*[Mm]ake the folder"):
        next(iter(module.predict_dataloader()))


def test_the_test_part_shows_every_rank_all_candidates(root):
    """A gate that looks at scores needs whole galleries; queries are still split."""
    module = depth_values(root, rationales=str(root / "rationales"))
    loaders = [on_rank(module, rank, 2).test_dataloader() for rank in range(2)]
    shown = [
        [c.key for batch in found[0] for c in batch.candidates.candidates] for found in loaders
    ]
    asked = [[q.key for batch in found[1] for q in batch.queries.queries] for found in loaders]
    assert shown[0] == shown[1]
    assert len(shown[0]) == 51
    assert not set(asked[0]) & set(asked[1])


def test_a_gate_learns_the_depth_values_of_its_own_embedder(root, tmp_path):
    """What a retrained embedder made worthless is not fitted in silence."""
    for name, mark in (("first", "aaaa"), ("second", "bbbb")):
        write_json(tmp_path / name / "fingerprint.json", {"fingerprint": mark, "finished": True})
    index = ShardIndex.open(root / "depth_values")
    samples = [
        Sample(entry.key, index.read(entry), {**entry.meta, "embedder": "aaaa"})
        for entry in index.entries
    ]
    marked = tmp_path / "depth_values"
    for name in index.shard_names:
        own = [s for s in samples if index.by_key[s.key].shard == name]
        origins = index.records[name].made_from
        write_shard(marked, name, own, fingerprint="tiny", made_from=origins)
    finish_manifest(marked, "tiny", index.shard_names)
    module = depth_values(root, depth_values=str(marked))
    module.check_embedder(tmp_path / "first")
    with pytest.raises(ValueError, match=r"depth_values and .*second disagree.*aaaa.*bbbb"):
        module.check_embedder(tmp_path / "second")
    depth_values(root).check_embedder(tmp_path / "second")  # nobody said whose those are
