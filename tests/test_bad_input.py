"""Broken files: one error that names the file, and nothing outside the folder is opened or run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules.evaluation import EvaluationRows, read_tasks
from experiments.run import innermost
from mmemb.backbones import load_backbone
from mmemb.lineage import fingerprint, read_facts
from mmemb.shard_writer import Sample, encode_members, write_folder
from mmemb.shards import ShardIndex, read_manifest
from mmemb.weights import read_weights
from tests.tiny import write_tiny


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
        ({"text": 5}, "no string"),
        ({"relevance": {}}, "names no right candidate"),
        ({"relevance": {"a": "b"}}, "wrong type"),
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
    with pytest.raises(ValueError, match="Unknown part"):
        rows.select(["tset"])


def test_the_page_of_the_parser_is_left_out() -> None:
    page = (
        "Does not validate against any of the Union subtypes\nSubtypes: [a, b]\nErrors:\n"
        "  - a.json is broken\n  - Expected a <class 'NoneType'>\nGiven value type: x\nGiven: y"
    )
    assert innermost(page) == "a.json is broken"
    assert innermost("plain") == "plain"
