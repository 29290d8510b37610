"""Broken files: one error that names the file, and nothing outside the folder is opened or run."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules.data_roots import read_tasks
from datamodules.evaluation import EvaluationRows
from datamodules.sidecars import RationaleTable
from experiments.cli.messages import innermost
from mmemb.backbones import load_backbone
from mmemb.records.pairs import EvaluationTask
from mmemb.records.rationales import Rationale, ScoredJson, ScoredRationale
from mmemb.records.schema import parse_json, to_json
from mmemb.storage.fingerprints import fingerprint
from mmemb.storage.manifests import read_manifest
from mmemb.storage.shard_index import ShardIndex
from mmemb.storage.shard_writer import (
    Sample,
    encode_members,
    finish_manifest,
    write_folder,
    write_shard,
)
from mmemb.storage.tensor_files import read_weights
from mmemb.storage.trained_facts import read_facts
from tests.fixtures.tiny_data import write_tiny


class _Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("name", ["../evil.tar", "/evil.tar", 5, "a/b.tar"])
def test_a_manifest_cannot_lead_out_of_its_folder(tmp_path: Path, name: Any) -> None:
    path = write_tiny(tmp_path) / "queries/manifest.json"
    data = json.loads(path.read_text())
    data["shards"][0]["name"] = name
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"manifest\.json cannot be trusted"):
        read_manifest(path.parent)


@pytest.mark.parametrize("content", ["", "{", "[1]", "null"])
def test_broken_json_names_its_file(tmp_path: Path, content: str) -> None:
    root = write_tiny(tmp_path / "data")
    for name in ("queries/manifest.json", "tasks.json", "fitted.json"):
        (root / name).write_text(content)
    with pytest.raises(ValueError, match=r"queries/manifest\.json is broken"):
        fingerprint({"root": str(root)})
    if content != "[1]":
        with pytest.raises(ValueError, match=r"tasks\.json is broken"):
            read_tasks(root)
    with pytest.raises(ValueError, match=r"fitted\.json is broken"):
        read_facts(root / "fitted.json")


def test_weights_run_no_code_and_name_their_file(tmp_path: Path) -> None:
    path, mark = tmp_path / "weights.pt", tmp_path / "ran"
    for content in (b"", b"junk", b"PK\x03\x04"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"weights\.pt cannot be read"):
            read_weights(path)
    torch.save({"x": _Evil(mark)}, path)
    with pytest.raises(ValueError, match=r"weights\.pt cannot be read"):
        read_weights(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "name", ["os.system", "mmemb.backbones.nope.X", "mmemb.backbones.base.Backbone"]
)
def test_a_saved_folder_names_only_our_backbones(tmp_path: Path, name: str) -> None:
    spec = {"class_path": name, "init_args": {}}
    (tmp_path / "config.json").write_text(json.dumps(spec))
    with pytest.raises(ValueError, match=r"config\.json"):
        load_backbone(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"text": ""}, "side q is empty"),
        ({"text": 5}, r"json: Expected `str`, got `int` - at `\$\.text`"),
        ({"fact": []}, r"json: Expected `str`, got `array` - at `\$\.fact`"),
        ({"answers": [[]]}, r"json: Expected `str`, got `array` - at `\$\.answers\[0\]`"),
        ({"colour": 1}, "json: Object contains unknown field `colour`"),
        ({"relevance": {}}, r"length >= 1 - at `\$\.relevance`"),
        ({"relevance": {"a": "b"}}, r"Expected `float`, got `str` - at `\$\.relevance\['a'\]`"),
        ({"relevance": {"a": 1.0, "b": 0}}, r"`float` > 0.0 - at `\$\.relevance\['b'\]`"),
        ({"relevance": {"a": float("nan")}}, "NaN is no number that JSON has"),
        ({"task": "flag-continent"}, "the index says task 'flag-name', the json 'flag-continent'"),
        (np.array([2, 1, 2]), "repeats 1 row, the json states 0"),
        (np.array([2, -1]), "lists row -1"),
        (np.array([0.5]), "whole numbers"),
        (np.array([[1]]), "whole numbers"),
    ],
)
def test_a_query_that_cannot_be_ranked_names_its_sample(
    tmp_path: Path, change: Any, words: str
) -> None:
    root = write_tiny(tmp_path)
    index = ShardIndex.open(root / "queries")
    entry = index.entries[0]
    members = index.read(entry)
    if isinstance(change, dict):
        members["json"] = json.dumps(json.loads(members["json"]) | change).encode()
    else:
        members |= encode_members({"candidates.npy": change})
    sample = Sample(entry.key, members, entry.meta)
    write_folder(root / "queries", [sample], prefix="x", samples_per_shard=1, fingerprint="x")
    rows = EvaluationRows(root, 4)
    with pytest.raises(ValueError, match=words):
        rows.read_query(rows.queries[0])
    with pytest.raises(ValueError, match="Unknown split"):
        rows.select(["tset"])


def test_the_page_of_the_parser_is_left_out() -> None:
    page = (
        "Does not validate against any of the Union subtypes\nSubtypes: [a, b]\nErrors:\n"
        "  - a.json is broken\n  - Expected a <class 'NoneType'>\nGiven value type: x\nGiven: y"
    )
    assert innermost(page) == "a.json is broken"
    # A part of a part: each has a page of its own.
    assert innermost(page.replace("a.json is broken", page.replace("\n", "\n    "))) == (
        "a.json is broken"
    )
    assert innermost("plain") == "plain"
    missing = (
        "Not a valid subclass of Logger. Got value: x\n  Subclass types expect one of:\n"
        "- Problem with given class_path 'a.WandbLogger':\n    Requirement 'wandb>=0.12' not met. "
        "HINT: Try it\n- Expected a <class 'bool'>"
    )
    assert innermost(missing) == "a.WandbLogger: Requirement 'wandb>=0.12' not met. HINT: Try it"


# ---- records and sidecars

RATIONALE = to_json(Rationale("<think>a</think>", "w", "m", "1", "p", "d", -1, 3))


def read_scored(data: dict[str, Any]) -> ScoredRationale:
    return parse_json(json.dumps(data), ScoredJson, "F").scored


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"text": 5}, "Expected `str`, got `int` - at `$.text`"),
        ({"text": None}, "Expected `str`, got `null` - at `$.text`"),
        ({"seed": "1"}, "Expected `int`, got `str` - at `$.seed`"),
        ({"num_tokens": True}, "Expected `int`, got `bool` - at `$.num_tokens`"),
        ({"num_tokens": 2.5}, "Expected `int`, got `float` - at `$.num_tokens`"),
        ({"num_tokens": -1}, "Expected `int` >= 0 - at `$.num_tokens`"),
        ({"log_probability": "x"}, "Expected `float | null`, got `str` - at `$.log_probability`"),
        ({"kept": 1}, "Expected `bool`, got `int` - at `$.kept`"),
        ({"weight": "1"}, "Expected `float`, got `str` - at `$.weight`"),
        ({"scores": {"gain": "1"}}, "Expected `float | null`, got `str` - at `$.scores['gain']`"),
        ({"colour": 1}, "unknown field `colour`"),
    ],
)
def test_a_record_names_the_field_that_is_wrong(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        read_scored(RATIONALE | change)


def test_what_json_does_to_a_number_is_no_error() -> None:
    found = read_scored(RATIONALE | {"log_probability": -2, "weight": 1, "kept": False})
    assert (found.rationale.log_probability, found.weight, found.kept) == (-2, 1, False)
    assert read_scored(RATIONALE | {"log_probability": None}).rationale.text


@pytest.mark.parametrize("record", [RATIONALE, to_json(EvaluationTask("t", "I-RET", "g"))])
def test_records_come_back_from_json(record: dict[str, Any]) -> None:
    kind = Rationale if "writer" in record else EvaluationTask
    assert to_json(parse_json(json.dumps(record), kind, "F")) == record
    name = next(iter(record))
    with pytest.raises(ValueError, match=rf"F: .*missing.*{name}"):
        parse_json(json.dumps({k: v for k, v in record.items() if k != name}), kind, "F")


def table_of(root: Path, folder: Path, members: dict[str, bytes]) -> RationaleTable:
    """Rationales of the queries, all with the same members."""
    index = ShardIndex.open(root / "queries")
    for shard in index.shard_names:
        samples = [Sample(e.key, members) for e in index.of_shard(shard)]
        origins = [index.origin(shard)]
        write_shard(folder, shard, samples, fingerprint="f", made_from=origins)
    finish_manifest(folder, "f", index.shard_names)
    return RationaleTable(folder, [index])


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"x.json": []}, "member json is missing. Make"),
        ({"json": {"text": "a"}}, "member json: Expected `array`, got `object`"),
        ({"json": 5}, "member json: Expected `array`, got `int`"),
        ({"json": [None]}, r"Expected `object`, got `null` - at `\$\[0\]`"),
        ({"json": [RATIONALE | {"count": "2"}]}, r"got `str` - at `\$\[0\]\.count`"),
        ({"json": [{"text": "a"}]}, r"missing required field `writer` - at `\$\[0\]`"),
    ],
)
def test_broken_rationales_name_their_sample(
    tmp_path: Path, tiny_root: Path, members: dict[str, Any], words: str
) -> None:
    encoded = {name: json.dumps(value).encode() for name, value in members.items()}
    table = table_of(tiny_root, tmp_path, encoded)
    with pytest.raises(
        ValueError, match=rf"queries-000000\.tar, sample 00000000, .*{words}"
    ) as got:
        table.read(EvaluationRows(tiny_root, 4).queries[0])
    assert "again" in str(got.value).lower()


def test_rationales_that_are_no_json_name_their_sample(tmp_path: Path, tiny_root: Path) -> None:
    table = table_of(tiny_root, tmp_path, {"json": b"["})
    with pytest.raises(ValueError, match=r"sample 00000000, member json: no JSON.*again"):
        table.read(EvaluationRows(tiny_root, 4).queries[0])
