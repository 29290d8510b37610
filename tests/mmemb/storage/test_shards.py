"""Shards: plain tars, equal bytes, atomic writes, trust, joins, clear errors."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import tarfile
import time
from functools import partial
from pathlib import Path

import pytest
import webdataset as wds
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.joins import check_join
from mmemb.storage.manifests import Source, existing_shards, index_path, read_manifest
from mmemb.storage.shard_index import ShardIndex
from mmemb.storage.shard_writer import (
    Sample,
    drop_other_shards,
    encode_members,
    finish_manifest,
    write_folder,
    write_shard,
)


def make_samples(keys: range) -> list[Sample]:
    return [
        Sample(
            f"k{k}",
            {"json": json.dumps({"k": k}).encode(), "q0.000.webp": b"picture%d" % k},
            {"split": "train"},
        )
        for k in keys
    ]


def write(folder: Path, keys: range = range(10), fingerprint: str = "f") -> Path:
    write_folder(
        folder,
        make_samples(keys),
        prefix="plain",
        samples_per_shard=4,
        fingerprint=fingerprint,
        sources=[Source("openmoji", "17.0.0", "CC-BY-SA-4.0", "0" * 64)],
    )
    return folder


def test_folder_reads_back_by_key(tmp_path):
    index = ShardIndex.open(write(tmp_path))
    assert index.shard_names == tuple(f"plain-{i:06d}.tar" for i in range(3))
    assert [entry.key for entry in index.entries] == [f"k{k}" for k in range(10)]
    entry = index.by_key["k7"]
    assert entry.meta == {"split": "train"}
    assert set(entry.media) == {"q0.000.webp"}
    assert index.read(entry) == {"json": b'{"k": 7}', "q0.000.webp": b"picture7"}
    assert index.read(entry, {"json"}) == {"json": b'{"k": 7}'}
    assert index.manifest.num_samples == 10
    assert index.manifest.sources[0].package == "openmoji"


def test_index_survives_pickling(tmp_path):
    index = pickle.loads(pickle.dumps(ShardIndex.open(write(tmp_path))))
    assert index.read(index.entries[3])["json"] == b'{"k": 3}'


# webdataset leaves the file to the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_shards_are_plain_webdataset_tars(tmp_path):
    path = str(write(tmp_path) / "plain-000001.tar")
    pipeline = wds.DataPipeline(wds.SimpleShardList([path]), wds.tarfile_to_samples())
    found = [(s["__key__"], s["json"], s["q0.000.webp"]) for s in pipeline]
    expected = [(f"k{k}", b'{"k": %d}' % k, b"picture%d" % k) for k in range(4, 8)]
    assert found == expected


def test_offsets_agree_with_tarfile(tmp_path):
    index = ShardIndex.open(write(tmp_path))
    with tarfile.open(tmp_path / "plain-000000.tar") as tar:
        found = {m.name: (m.offset_data, m.size) for m in tar.getmembers()}
        assert {(m.mtime, m.uid, m.gid, m.uname) for m in tar.getmembers()} == {(0, 0, 0, "")}
    entries = index.of_shard("plain-000000.tar")
    assert found == {f"{e.key}.{k}": place for e in entries for k, place in e.members.items()}


def test_equal_content_is_equal_bytes(tmp_path):
    first, second = write(tmp_path / "a"), write(tmp_path / "b")
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()


@settings(max_examples=20, deadline=None)
@given(st.dictionaries(st.from_regex(r"[a-z0-9_]{1,6}", fullmatch=True), st.binary(max_size=2000)))
def test_any_bytes_survive(tmp_path_factory, members):
    folder = tmp_path_factory.mktemp("bytes")
    write_folder(folder, [Sample("k", members)], prefix="x", samples_per_shard=1, fingerprint="")
    index = ShardIndex.open(folder)
    assert index.read(index.entries[0]) == members


def prepare_again(folder: Path, text: bytes) -> None:
    """The same keys and sizes with another text, as soon as a clock can tell the difference."""
    time.sleep(0.01)
    samples = [Sample(f"k{n}", {"json": text}) for n in range(4)]
    drop_other_shards(folder, text.decode())
    write_folder(folder, samples, prefix="x", samples_per_shard=2, fingerprint=text.decode())


def test_a_shard_that_is_prepared_again_while_it_is_read_is_one_clear_error(tmp_path):
    """Its offsets would lead to bytes of other samples; writers have their copy of the index."""
    prepare_again(tmp_path, b"old")
    index = ShardIndex.open(tmp_path)
    index.read(index.entries[0])
    prepare_again(tmp_path, b"new")
    for copy in (index, pickle.loads(pickle.dumps(index))):
        with pytest.raises(
            ValueError, match=r"x-000000\.tar was changed while .* start the command"
        ):
            copy.read(copy.entries[0])
    assert ShardIndex.open(tmp_path).read(index.entries[0]) == {"json": b"new"}
    (tmp_path / "x-000000.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"x-000000\.tar was removed while"):
        index.read(index.entries[0])


@pytest.mark.parametrize("verify", [True, False])
def test_equal_size_and_time_do_not_hide_other_bytes(tmp_path, verify):
    """Archives are unpacked with the times of their members."""
    prepare_again(tmp_path, b"old")
    index, path = ShardIndex.open(tmp_path, verify), tmp_path / "x-000000.tar"
    data, times = path.read_bytes(), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    time.sleep(0.01)
    path.write_bytes(data.replace(b"old", b"new"))
    os.utime(path, ns=times)
    with pytest.raises(ValueError, match=r"x-000000\.tar was changed while it was being read"):
        index.read(index.entries[0])


def test_other_times_of_the_same_bytes_are_no_change(tmp_path):
    """Folders are copied, linked and given to other groups while somebody reads them."""
    prepare_again(tmp_path, b"old")
    index, path = ShardIndex.open(tmp_path), tmp_path / "x-000000.tar"
    os.utime(path, ns=(0, 0))
    assert index.read(index.entries[0]) == {"json": b"old"}
    copy = path.with_suffix(".copy")
    shutil.copy(path, copy)
    copy.replace(path)
    assert index.read(index.entries[1]) == {"json": b"old"}


def test_at_every_instant_of_a_preparation_a_reader_gets_one_version_or_an_error(
    tmp_path, monkeypatch
):
    """Index and tar change in two steps, and the manifest in a third."""
    prepare_again(tmp_path, b"old")
    opened, seen = ShardIndex.open(tmp_path), []

    def outcome(read):
        try:
            return {text for entry in opened.entries for text in read(entry).values()}
        except (ValueError, FileNotFoundError) as error:
            return type(error).__name__

    def look():
        before = outcome(opened.read)
        try:
            now = outcome(ShardIndex.open(tmp_path).read)
        except (ValueError, FileNotFoundError) as error:
            now = type(error).__name__
        seen.append((before, now))

    def step(original, *arguments, **more):
        look()
        original(*arguments, **more)
        look()

    for name in ("replace", "unlink"):
        monkeypatch.setattr(os, name, partial(step, getattr(os, name)))
    prepare_again(tmp_path, b"new")
    refused = ("ValueError", "FileNotFoundError")
    assert {before for before, _ in seen if before != {b"old"}} <= set(refused)
    assert all(now in ({b"old"}, {b"new"}, *refused) for _, now in seen)
    assert seen[0] == ({b"old"}, {b"old"})
    assert seen[-1] == ("ValueError", {b"new"})
    assert len(seen) > 10


def test_interrupted_write_leaves_nothing_trusted(tmp_path):
    def samples():
        yield from make_samples(range(2))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path, "plain-000000.tar", samples(), fingerprint="f")
    assert existing_shards(tmp_path, "f") == {}
    assert not (tmp_path / "plain-000000.tar").exists()
    with pytest.raises(FileNotFoundError, match=r"is not finished: expected manifest\.json"):
        ShardIndex.open(tmp_path)


def test_interrupted_between_index_and_rename(tmp_path):
    write(tmp_path, fingerprint="old")
    index = index_path(tmp_path, "plain-000000.tar")
    other = tmp_path / "other"
    write(other, range(20, 30), fingerprint="new")
    index.write_bytes(index_path(other, "plain-000000.tar").read_bytes())  # but the tar is old
    assert existing_shards(tmp_path, "new") == {}
    with pytest.raises(ValueError, match=r"plain-000000\.index\.json cannot be trusted"):
        ShardIndex.open(tmp_path)


def test_rerun_fills_only_the_hole_with_the_same_bytes(tmp_path):
    write(tmp_path)
    hole, kept = tmp_path / "plain-000001.tar", tmp_path / "plain-000000.tar"
    before, stamp = hole.read_bytes(), kept.stat().st_mtime_ns
    hole.unlink()
    assert set(existing_shards(tmp_path, "f")) == {"plain-000000.tar", "plain-000002.tar"}
    with pytest.raises(ValueError, match=r"shard\(s\) plain-000001\.tar are missing"):
        finish_manifest(tmp_path, "f", [f"plain-{i:06d}.tar" for i in range(3)])
    write(tmp_path)
    assert hole.read_bytes() == before
    assert kept.stat().st_mtime_ns == stamp


def test_covered_folder_is_left_alone(tmp_path):
    write(tmp_path)

    def never():
        raise AssertionError
        yield

    write_folder(tmp_path, never(), prefix="plain", samples_per_shard=4, fingerprint="f")


def test_other_settings_are_a_hole(tmp_path, caplog):
    write(tmp_path)
    assert existing_shards(tmp_path, "other settings") == {}
    write(tmp_path, range(4), fingerprint="other settings")
    assert "no longer part of it" in caplog.text
    assert len(ShardIndex.open(tmp_path).entries) == 4


def test_missing_shard(tmp_path):
    (write(tmp_path) / "plain-000002.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"plain-000002\.tar is missing .*fills only"):
        ShardIndex.open(tmp_path)


def test_missing_index(tmp_path):
    index_path(write(tmp_path), "plain-000002.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"plain-000002\.tar has no index"):
        ShardIndex.open(tmp_path)


def test_truncated_shard(tmp_path):
    path = write(tmp_path) / "plain-000001.tar"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"plain-000001\.tar .*10240 bytes .*found 3000 bytes"):
        ShardIndex.open(tmp_path, verify=False)
    assert "plain-000001.tar" not in existing_shards(tmp_path, "f")


def test_changed_shard(tmp_path):
    path = write(tmp_path) / "plain-000001.tar"
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"plain-000001\.tar .*expected SHA-256 .*Delete it"):
        ShardIndex.open(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"shards": [], "sources": []}', "\xff"])
def test_broken_manifest(tmp_path, text):
    (write(tmp_path) / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"manifest\.json cannot be trusted"):
        read_manifest(tmp_path)


def test_future_format(tmp_path):
    path = write(tmp_path) / "manifest.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 9'))
    with pytest.raises(ValueError, match="expected format version 1; found 9"):
        read_manifest(tmp_path)


def test_index_that_points_outside(tmp_path):
    path = index_path(write(tmp_path), "plain-000000.tar")
    data = json.loads(path.read_bytes())
    data["entries"][0]["members"]["json"] = [10**9, 5]
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match="lies outside its shard"):
        ShardIndex.open(tmp_path)


def test_an_index_that_hashes_what_is_not_there(tmp_path):
    """Its picture would be known by its hash alone, and the sample go on as text."""
    path = index_path(write(tmp_path), "plain-000000.tar")
    data = json.loads(path.read_bytes())
    data["entries"][0]["media"]["t9.webp"] = "0" * 64
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"has no member 't9\.webp', whose hash is stated"):
        ShardIndex.open(tmp_path)


def test_an_index_that_lacks_the_hash_of_a_picture(tmp_path):
    path = index_path(write(tmp_path), "plain-000000.tar")
    data = json.loads(path.read_bytes())
    data["entries"][0]["members"]["t9.webp"] = data["entries"][0]["members"]["json"]
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"has no hash of its member 't9\.webp'"):
        ShardIndex.open(tmp_path)


def test_a_manifest_that_lost_a_shard(tmp_path):
    path = write(tmp_path) / "manifest.json"
    data = json.loads(path.read_bytes())
    lost = data["shards"].pop()
    path.write_text(json.dumps(data))
    with pytest.raises(
        ValueError, match=rf"expected 10 samples .* found {10 - lost['num_samples']}"
    ):
        ShardIndex.open(tmp_path)


def test_a_meta_key_that_an_index_lacks_says_what_to_do(tmp_path):
    entry = pickle.loads(pickle.dumps(ShardIndex.open(write(tmp_path)))).entries[0]
    assert (entry.meta["split"], entry.meta.get("task"), "task" in entry.meta) == (
        "train", None, False,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"lacks 'task' in its meta; it has \['split'\].*again"):
        entry.meta["task"]


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        ShardIndex.open(tmp_path / "nowhere")


@pytest.mark.parametrize("key", ["", "a.b", "../a", "a/b", "ä", "k" * 81])
def test_bad_keys(tmp_path, key):
    with pytest.raises(ValueError, match="Sample key"):
        write_shard(tmp_path, "x.tar", [Sample(key, {"json": b""})])


@pytest.mark.parametrize("extension", ["", "JSON", "../x", "a..b", "q0.webp/"])
def test_bad_members(tmp_path, extension):
    with pytest.raises(ValueError, match="member"):
        write_shard(tmp_path, "x.tar", [Sample("k", {extension: b""})])


def test_bad_shard_name(tmp_path):
    with pytest.raises(ValueError, match="Shard name"):
        write_shard(tmp_path, "../x.tar", [])


def test_key_twice_in_a_shard(tmp_path):
    with pytest.raises(ValueError, match="occurs twice"):
        write_shard(tmp_path, "x.tar", make_samples(range(2)) * 2)


def test_key_twice_in_a_folder(tmp_path):
    for name in ("a.tar", "b.tar"):
        write_shard(tmp_path, name, make_samples(range(2)), fingerprint="f")
    finish_manifest(tmp_path, "f", ["a.tar", "b.tar"])
    with pytest.raises(ValueError, match=r"'k0' occurs in shard .*a\.tar and again in b\.tar"):
        ShardIndex.open(tmp_path)


def test_join_covers_what_it_has(tmp_path):
    source, name = ShardIndex.open(write(tmp_path / "pairs")), "plain-000001.tar"
    samples, origins = make_samples(range(4, 8)), [source.origin(name)]
    write_shard(tmp_path / "s", name, samples, fingerprint="f", made_from=origins)
    write_shard(tmp_path / "s", "queries-000000.tar", make_samples(range(3)), fingerprint="f")
    finish_manifest(tmp_path / "s", "f", ["plain-000001.tar", "queries-000000.tar"])
    assert check_join(source, ShardIndex.open(tmp_path / "s")) == {"plain-000001.tar"}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (range(1, 5), "expected key 'k0' at row 0, found 'k1'"),
        (range(3), "expected key 'k3' at row 3, found no sample"),
        (range(5), "expected key no sample at row 4, found 'k4'"),
    ],
)
def test_join_with_other_keys_names_both_shards(tmp_path, keys, message):
    source = ShardIndex.open(write(tmp_path / "pairs"))
    write_shard(tmp_path / "side", "plain-000000.tar", make_samples(keys), fingerprint="f")
    finish_manifest(tmp_path / "side", "f", ["plain-000000.tar"])
    with pytest.raises(ValueError, match=message) as caught:
        check_join(source, ShardIndex.open(tmp_path / "side"))
    assert str(tmp_path / "side/plain-000000.tar") in str(caught.value)
    assert str(tmp_path / "pairs/plain-000000.tar") in str(caught.value)


def test_encode_members():
    import numpy as np
    import torch

    members = encode_members({"json": [1], "npy": np.ones(2), "state.npy": torch.zeros(3)})
    assert json.loads(members["json"]) == [1]
    assert np.load(io.BytesIO(members["state.npy"]), allow_pickle=False).tolist() == [0, 0, 0]
