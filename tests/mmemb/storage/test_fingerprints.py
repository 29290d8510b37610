"""Fingerprints: what makes a run again, what does not; facts that runs hand down."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from mmemb.storage import file_hashes, fingerprints
from mmemb.storage.files import file_sha256
from mmemb.storage.fingerprints import fingerprint
from mmemb.storage.json_files import write_json
from mmemb.storage.manifests import MANIFEST, Origin
from mmemb.storage.shard_writer import Sample, finish_manifest, write_folder, write_shard
from mmemb.storage.trained_facts import (
    FACTS,
    TrainedFacts,
    inherited_facts,
    read_facts,
    trained_facts,
    write_facts,
    write_run_facts,
)


def write_run(folder: Path, mark: str = "one", facts: tuple[str, ...] = ()) -> Path:
    write_json(folder / "fingerprint.json", {"fingerprint": mark, "finished": True})
    write_json(folder / "fitted.json", {"facts": list(facts)})
    (folder / "backbone").mkdir(exist_ok=True)
    return folder


def write_shards(folder: Path, text: bytes = b"1", mark: str = "m") -> Path:
    samples = [Sample("a", {"json": text})]
    write_folder(folder, samples, prefix="x", samples_per_shard=1, fingerprint=mark)
    return folder


def test_settings_decide_and_their_order_does_not() -> None:
    one = fingerprint({"a": 1, "b": [1, 2], "c": {"lr": 0.1}})
    assert one == fingerprint({"c": {"lr": 0.1}, "b": (1, 2), "a": 1})
    assert one != fingerprint({"a": 1, "b": [2, 1], "c": {"lr": 0.1}})
    assert one != fingerprint({"a": 1, "b": [1, 2], "c": {"lr": 0.2}})
    assert one != fingerprint({"a": "1", "b": [1, 2], "c": {"lr": 0.1}})


def test_a_file_counts_with_its_bytes(tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.json"
    prompt.write_text("{}")
    settings = {"writers": {"w": {"prompt": str(prompt)}}}
    before = fingerprint(settings)
    prompt.write_text("{ }")
    assert fingerprint(settings) != before
    prompt.write_text("{}")
    assert fingerprint(settings) == before


def test_a_folder_of_shards_counts_with_its_manifest(tmp_path: Path) -> None:
    settings = {"root": str(tmp_path / "pairs")}
    found = [fingerprint(settings)]
    for text, mark in ((b"1", "m"), (b"2", "n"), (b"2", "o")):
        write_shards(tmp_path / "pairs", text, mark)
        found.append(fingerprint(settings))
    assert len(set(found)) == 4


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_data_root_counts_with_the_folders_below(tmp_path: Path, depth: int) -> None:
    root = tmp_path / "data"
    folder = root.joinpath(*["deep"] * depth)
    write_shards(folder, b"1", "m")
    before = fingerprint({"root": str(root)})
    write_shards(folder, b"2", "n")
    assert fingerprint({"root": str(root)}) != before


def test_a_model_in_a_run_counts_with_the_run(tmp_path: Path) -> None:
    """`<experiment>/trunk` is a link: when it moves to another run, what reads it runs again."""
    for mark in ("one", "two"):
        write_run(tmp_path / f"run-{mark}", mark)
    settings = {"backbone": {"folder": str(tmp_path / "trunk" / "backbone")}}
    found = []
    for mark in ("one", "two", "one"):
        link = tmp_path / "trunk"
        link.unlink(missing_ok=True)
        link.symlink_to(f"run-{mark}")
        found.append(fingerprint(settings))
    assert found[0] == found[2] != found[1]


def test_a_model_folder_without_a_mark_counts_with_its_bytes(tmp_path: Path) -> None:
    """Replaced weights of equal size, with the old times as `rsync -t` leaves them."""
    model = tmp_path / "model"
    (model / "parts").mkdir(parents=True)
    weights = model / "parts/weights.safetensors"
    weights.write_bytes(b"old")
    settings = {"model": str(model), "id": "owner/name"}
    before, times = fingerprint(settings), weights.stat().st_mtime_ns

    weights.write_bytes(b"new")
    os.utime(weights, ns=(times, times))
    assert fingerprint(settings) != before
    weights.write_bytes(b"old")
    (model / ".cache").mkdir()
    (model / ".cache/lock").touch()
    assert fingerprint(settings) == before, "neither times nor hidden files count"
    weights.rename(model / "weights.safetensors")
    assert fingerprint(settings) != before


def test_a_large_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(file_hashes, "LARGE_BYTES", 3)
    monkeypatch.setattr(file_hashes, "_CLOCK_TICK_NS", -(10**12))  # as if written long ago
    read: list[Path] = []

    def sha256(path: Path) -> str:
        read.append(path)
        return file_sha256(path)

    monkeypatch.setattr(file_hashes, "file_sha256", sha256)
    path = tmp_path / "weights.pt"
    path.write_bytes(b"old")
    settings = {"weights": str(path)}
    before = fingerprint(settings)
    assert fingerprint(settings) == before
    assert len(read) == 1

    times = path.stat().st_mtime_ns
    path.write_bytes(b"new")
    os.utime(path, ns=(times, times))
    assert fingerprint(settings) != before
    assert len(read) == 2


def test_a_folder_of_very_many_files_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprints, "MOST_FILES", 1)
    monkeypatch.setattr(fingerprints, "file_content", lambda path: pytest.fail("it is read"))
    for name in ("a", "b"):
        (tmp_path / name).touch()
    before = fingerprint({"folder": str(tmp_path)})
    (tmp_path / "b").write_bytes(b"more")
    assert fingerprint({"folder": str(tmp_path)}) != before


def test_what_the_run_writes_is_no_input(tmp_path: Path) -> None:
    """Otherwise a finished run never again has the fingerprint that it started with."""
    folder, other = tmp_path / "rationales", tmp_path / "other"
    settings = {"rationales": str(folder), "deep": [str(folder / "more")]}
    before = fingerprint(settings, [folder])
    write_shards(folder)
    (folder / "more").mkdir()
    assert fingerprint(settings, [folder]) == before
    assert fingerprint(settings, [other]) != before
    assert fingerprint({"rationales": str(other)}, [other]) != before, "its name still counts"


def test_relative_and_absolute_names_are_one_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings, absolute = {"rationales": "runs/rationales"}, tmp_path / "runs/rationales"
    before = fingerprint(settings, [absolute])
    write_shards(absolute)
    assert fingerprint(settings, [absolute]) == before
    assert fingerprint(settings, [Path("runs/rationales")]) == before


def test_long_and_empty_strings_are_no_paths() -> None:
    assert fingerprint({"text": "x" * 10_000, "none": ""})


def test_facts_are_handed_down_by_every_run_that_is_named(tmp_path: Path) -> None:
    write_run(tmp_path / "a", facts=("fr/capital",))
    write_run(tmp_path / "b", facts=("de/capital", "fr/capital"))
    own = write_run(tmp_path / "own", facts=("stale",))
    settings: dict[str, Any] = {
        "judges": {"a": str(tmp_path / "a"), "b": str(tmp_path / "b/backbone")},
        "run": str(own),
        "number": 3,
    }
    expected = {"fr/capital", "de/capital"}
    assert inherited_facts(settings, [own]).trained == expected
    assert inherited_facts(settings).trained == expected | {"stale"}


def test_facts_that_only_set_a_number_are_handed_down_apart(tmp_path: Path) -> None:
    facts = TrainedFacts(frozenset({"fr"}), frozenset({"de"}))
    write_facts(tmp_path / "selected/fitted.json", facts)
    assert inherited_facts([str(tmp_path / "selected")]) == facts
    assert read_facts(tmp_path / "selected/fitted.json") == {"fr"}, "the others bar nothing"
    assert facts.as_calibrated() == TrainedFacts(calibrated=frozenset({"fr", "de"}))


def write_weights(folder: Path) -> Path:
    """What Backbone.save_pretrained leaves, as far as names go."""
    write_json(folder / "config.json", {"class_path": "mmemb.backbones.JointEncoder"})
    (folder / "weights.pt").touch()
    (folder / "model").mkdir()
    (folder / "model/model.safetensors").touch()
    return folder


@pytest.mark.parametrize("part", ["backbone", "backbone/model"])
def test_copied_weights_carry_their_facts(tmp_path: Path, part: str) -> None:
    write_weights(tmp_path / "run/backbone")
    facts = TrainedFacts(frozenset({"fr"}), frozenset({"de"}))
    write_run_facts(tmp_path / "run", facts)
    shutil.copytree(tmp_path / "run" / part, tmp_path / "copy/of/a/model/somewhere")
    assert inherited_facts(str(tmp_path / "copy/of/a/model/somewhere")) == facts


def test_a_link_to_a_model_leads_to_its_run(tmp_path: Path) -> None:
    write_run(tmp_path / "runs/pocket/run", facts=("fr",))
    (tmp_path / "model").symlink_to(tmp_path / "runs/pocket/run/backbone")
    assert inherited_facts(str(tmp_path / "model")).trained == {"fr"}


def test_a_model_without_a_list_may_not_judge(tmp_path: Path) -> None:
    """The list stayed behind when the weights were copied by an older version."""
    model = str(write_weights(tmp_path / "copy"))
    inherited = inherited_facts({"backbone": {"folder": model}})
    assert inherited == TrainedFacts(unknown=frozenset({model}))
    write_facts(tmp_path / "judge/fitted.json", inherited)
    with pytest.raises(ValueError, match=r"copy goes back to are unknown.*Copy fitted\.json"):
        read_facts(tmp_path / "judge/fitted.json")
    with pytest.raises(ValueError, match="unknown"):
        trained_facts(model)
    write_json(tmp_path / "copy/fitted.json", {"facts": []})
    assert trained_facts(model) == frozenset()


@pytest.mark.parametrize(
    ("command", "is_known"), [("python -m experiments.run ...", False), ("", True)]
)
def test_a_sidecar_that_lost_its_list_may_not_teach_a_judge(
    tmp_path: Path, command: str, is_known: bool
) -> None:
    """What `prepare` writes goes back to no model and has none."""
    folder = tmp_path / "teacher"
    origin = Origin(tmp_path, "x-000000.tar", "0" * 64)
    write_shard(
        folder, origin.shard, [Sample("k", {"json": b"[]"})], fingerprint="f",
        made_from=[origin], command=command,
    )  # fmt: skip
    finish_manifest(folder, "f", [origin.shard])
    unknown = frozenset() if is_known else frozenset({str(folder)})
    assert inherited_facts(str(folder)) == TrainedFacts(unknown=unknown)

    write_facts(folder / FACTS, TrainedFacts(frozenset({"a"})))
    assert inherited_facts(str(folder)) == TrainedFacts(frozenset({"a"}))


def test_a_data_root_hands_no_facts_down(tmp_path: Path) -> None:
    """Its own manifest lists no shards, which lie in folders below it."""
    write_json(tmp_path / MANIFEST, {"fingerprint": "f"})
    assert inherited_facts(str(tmp_path)) == TrainedFacts()


def test_a_checkpoint_hands_down_the_facts_of_its_run(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run/checkpoints/last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    assert inherited_facts(str(checkpoint)).unknown == {str(checkpoint)}
    write_run(tmp_path / "run", facts=("fr",))
    assert inherited_facts(str(checkpoint)).trained == {"fr"}


def test_a_model_of_the_hub_was_trained_on_none_of_our_facts(tmp_path: Path) -> None:
    write_json(tmp_path / "bert/config.json", {"model_type": "bert"})
    assert trained_facts(str(tmp_path / "bert")) == trained_facts("org/model") == frozenset()


def test_missing_facts_are_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"fitted\.json is missing.*experiments\.run fit"):
        read_facts(tmp_path / "fitted.json")


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.json"
    write_json(path, {"a": "é"})
    with pytest.raises(TypeError):
        write_json(path, {("no", "key"): 1})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": "é"}
