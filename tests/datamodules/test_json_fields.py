"""Any JSON value in any field of a sample, index or sidecar: the same value, or a named error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.decode import DecodeError
from datamodules.sample_json import CandidateJson, PairJson, QueryJson
from datamodules.samples import Members, SampleReader
from mmemb.records.rationales import ScoredJson, scored_to_json
from mmemb.records.schema import SchemaError, parse_json
from mmemb.records.sidecar_json import DecisionJson, DepthValueJson, NegativeJson
from mmemb.storage.manifests import MANIFEST, Source, index_path, read_manifest, read_record
from mmemb.storage.shard_writer import Sample, write_folder

LABELS = {"task": "t", "split": "train", "concept": "c", "fact": "f"}
PAIR = LABELS | {
    "source": "g", "gallery": "g", "text": "a", "instruction": "", "target_text": "b",
    "target_instruction": "", "target_name": "b", "positives": ["b"], "answers": ["b"],
}  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


def places(data: Any) -> list[tuple[Any, ...]]:
    """Every place in JSON data, as a way from the top."""
    steps = data.items() if isinstance(data, dict) else enumerate(data)
    below = [
        (key, *way)
        for key, value in steps
        for way in (places(value) if isinstance(value, dict | list) else [()])
    ]
    return [(), *below, *([("unknown",)] if isinstance(data, dict) else [])]


def changed(data: Any, way: tuple[Any, ...], value: Any) -> Any:
    if not way:
        return value
    copy = dict(data) if isinstance(data, dict) else list(data)
    copy[way[0]] = changed(data[way[0]], way[1:], value) if way[1:] else value
    return copy


def read(function: Callable[[], Any], fault: type[ValueError]) -> tuple[Any, str]:
    """What is read, or else the message of the one error that may come."""
    try:
        return function(), ""
    except fault as error:
        return None, str(error)


@given(st.data(), VALUES)
def test_any_value_in_any_field_of_a_pair(draw: st.DataObject, value: Any) -> None:
    """What is read is what was written; whatever else is a fault of that sample, to be skipped."""
    data = changed(PAIR, draw.draw(st.sampled_from(places(PAIR))), value)
    members = Members.of_bytes("k", "Tar x.tar, sample k", {"json": json.dumps(data).encode()})
    pair, fault = read(lambda: SampleReader().pair_of(members), DecodeError)
    if pair is None:
        assert "Tar x.tar, sample k" in fault
        return
    assert (pair.query.text, pair.target.text) == (data["text"], data["target_text"])
    assert list(pair.positives) == data["positives"]
    assert {name: getattr(pair, name) for name in LABELS} == {n: data[n] for n in LABELS}


RATIONALE = {
    "text": "a", "writer": "w", "model": "m", "revision": "", "prompt": "", "decoding": "d",
    "seed": -1, "num_tokens": 3, "count": 2, "seeds": [1, 2], "log_probability": -0.5,
    "depth": "full", "provenance": "one-sided",
    "scores": {"gain": 0.5, "raw": None}, "names_target": True, "kept": True, "weight": 0.5,
}  # fmt: skip
DEPTH_VALUE = {
    "task": "t", "split": "test", "concept": "c", "eligible": True, "depths": ["direct", "full"],
    "depth_value": [[-1.0], [-2.0, -3.0]], "cost": [[0], [3, 4]], "confidence": [[], [None, -0.5]],
    "metrics": [{"hit@1": 1.0}, {"hit@1": 0.0}], "averaged": [{"hit@1": 1.0}, {"hit@1": 0.5}],
    "ranks": [1.0, 2.5], "top": ["a", "b"], "scores": [-1.0, 0.5, 1.0], "swap": [0.5, 0.7],
}  # fmt: skip
ROWS: list[tuple[Any, Any]] = [
    (PAIR, PairJson),
    (
        LABELS
        | {"text": "a", "instruction": "", "relevance": {"b": 1.0, "c": 0.5}, "answers": ["b"]}
        | {"repeats": 1},
        QueryJson,
    ),
    ({"name": "b", "gallery": "g", "text": "b", "instruction": ""}, CandidateJson),
    ([RATIONALE], tuple[ScoredJson, ...]),
    (DEPTH_VALUE, DepthValueJson),
    ({"depth": 1, "logits": [0.5, -0.5], "probability": 0.5, "cost": 3.0}, DecisionJson),
    ([{"row": 3, "name": "b", "score": 0.5}], tuple[NegativeJson, ...]),
]


@given(st.data(), st.sampled_from(ROWS), VALUES)
def test_any_value_in_any_field_of_a_row(
    draw: st.DataObject, row: tuple[Any, Any], value: Any
) -> None:
    data, kind = row
    found = json.dumps(changed(data, draw.draw(st.sampled_from(places(data))), value))
    record, fault = read(lambda: parse_json(found, kind, "Shard s, sample k"), SchemaError)
    assert not fault or (fault.startswith("Shard s, sample k: ") and len(fault) < 600)
    assert fault or parse_json(msgspec.json.encode(record), kind, "again") == record


def test_a_rationale_comes_back_from_its_row() -> None:
    scored = parse_json(json.dumps(RATIONALE), ScoredJson, "F").scored
    assert json.loads(json.dumps(scored_to_json(scored))) == RATIONALE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("queries")
    meta = {"split": "test", "task": "t"}
    samples = [Sample(key, {"json": b"{}", "q0.webp": b"x"}, meta) for key in "ab"]
    source = Source("p", "1", "MIT", "0" * 64)
    options = {"prefix": "q", "samples_per_shard": 2, "fingerprint": "f", "sources": [source]}
    write_folder(folder, samples, **options)
    return folder


@given(st.data(), VALUES)
def test_any_value_in_any_field_of_a_manifest_or_an_index(
    folder: Path, draw: st.DataObject, value: Any
) -> None:
    shard = read_manifest(folder).shards[0].name
    path, opened = draw.draw(
        st.sampled_from(
            [
                (folder / MANIFEST, lambda: read_manifest(folder)),
                (index_path(folder, shard), lambda: read_record(folder, shard)),
            ]
        )
    )
    whole = path.read_bytes()
    way = draw.draw(st.sampled_from(places(json.loads(whole))))
    path.write_text(json.dumps(changed(json.loads(whole), way, value)))
    record, fault = read(opened, ValueError)
    path.write_bytes(whole)
    assert record is not None or fault.startswith(f"{path} cannot be trusted")


@pytest.mark.parametrize(
    ("way", "value", "words"),
    [
        (("entries", 0, "members", "json"), [-1, 5], r">= 0 - at `\$\.entries\[0\]\.members\['js"),
        (("entries", 0, "members", "json"), [0, 10**12], "lies outside its shard"),
        (("entries", 0, "members", "json"), [2**70, 1], "lies outside its shard|cannot be trusted"),
        (("entries", 0, "media"), {"q0.webp": "x" * 64}, r"at `\$\.entries\[0\]\.media\['q0\.web"),
        (
            ("entries", 0, "meta"),
            {"split": 1},
            r"got `int` - at `\$\.entries\[0\]\.meta\['split'\]",
        ),
        (("shard", "name"), "../x.tar", r"at `\$\.shard\.name`"),
        (("shard", "num_bytes"), -1, r"at `\$\.shard\.num_bytes`"),
        (("made_from",), [{"folder": "a", "shard": "/b.tar", "sha256": "0" * 64}], "made_from"),
    ],
)
def test_an_index_that_cannot_be_right_names_the_field(
    folder: Path, tmp_path: Path, way: tuple[Any, ...], value: Any, words: str
) -> None:
    shard = read_manifest(folder).shards[0].name
    data = json.loads(index_path(folder, shard).read_bytes())
    path = index_path(tmp_path, shard)
    path.write_text(json.dumps(changed(data, way, value)))
    with pytest.raises(ValueError, match=words) as got:
        read_record(tmp_path, shard)
    assert str(path) in str(got.value)
