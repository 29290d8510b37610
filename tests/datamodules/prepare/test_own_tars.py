"""Tars of pictures with captions, as img2dataset writes them."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from datamodules.prepare.__main__ import main
from mmemb.storage.shard_index import ShardIndex
from tests.datamodules.prepare.test_prepare_folder import digests
from tests.fixtures.own_containers import tar_sample, write_tar
from tests.fixtures.tiny_data import picture


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Two shards and what img2dataset writes beside them; one download has failed."""
    folder = tmp_path / "laion"
    folder.mkdir()
    write_tar(
        folder / "00000.tar", [*tar_sample(0), *tar_sample(1), *tar_sample(2, "failed_to_download")]
    )
    write_tar(folder / "00001.tar", [*tar_sample(10000), *tar_sample(10001)])
    for name in ("00000.parquet", "00000_stats.json"):
        (folder / name).write_bytes(b"of no account here")
    return folder


def prepare(place: object, out: Path, *more: str) -> int:
    command = ["folder", "--tars", str(place), "--out", str(out), "--split", "train"]
    return main([*command, "--workers", "1", *more])


@pytest.mark.parametrize("pattern", ["", "*.tar", "{}"])
def test_tars_become_pairs(
    tars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], pattern: str
) -> None:
    place = str(tars / pattern) if pattern != "{}" else str(tars / "00000.tar")
    others = [str(tars / "00001.tar")] if pattern == "{}" else []
    command = ["folder", "--tars", place, *others, "--out", str(tmp_path / "out")]
    assert main([*command, "--split", "train", "--workers", "1"]) == 0

    said = capsys.readouterr().out
    assert "their download failed: 1; they were passed over" in said
    assert "columns that are not used: 'key', 'status', 'url'" in said

    index = ShardIndex.open(tmp_path / "out/pairs/plain")
    assert [entry.meta["id"] for entry in index.entries] == [
        "00000/000000000", "00000/000000001", "00001/000010000", "00001/000010001",
    ]  # fmt: skip
    # The bytes decide what a picture is: the fixture's are WebP.
    members = [index.read(entry) for entry in index.entries]
    assert [m["t0.webp"] for m in members] == [picture(n) for n in (0, 1, 10000, 10001)]


def test_the_key_of_the_json_may_be_the_id(tars: Path, tmp_path: Path) -> None:
    assert prepare(tars, tmp_path / "out", "--map", "key=id") == 0
    keys = [entry.key for entry in ShardIndex.open(tmp_path / "out/pairs/plain").entries]
    assert keys == ["000000000", "000000001", "000010000", "000010001"]


def test_a_changed_picture_in_a_tar_is_seen(
    tars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, tar = tmp_path / "out", tars / "00001.tar"
    prepare(tars, out)
    before, times = digests(out), tar.stat()
    prepare(tars, out)
    assert "everything is there" in capsys.readouterr().out

    members = [("000010000.jpg", picture(77)), *tar_sample(10000)[1:], *tar_sample(10001)]
    write_tar(tar, members)
    os.utime(tar, ns=(times.st_atime_ns, times.st_mtime_ns))
    prepare(tars, out)
    assert "everything is there" not in capsys.readouterr().out
    assert digests(out) != before


def test_faults_of_samples_are_named(
    tars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    members = [
        ("a.jpg", picture(0)), ("b.txt", b"words"), ("c.jpg", picture(1)), ("c.png", picture(2)),
        ("c.txt", b"words"), ("d.jpg", b"junk"), ("d.txt", b"words"), ("e.jpg", picture(3)),
        ("e.json", b"[]"), ("../f.JPG", picture(4)), ("../f.txt", b"four"), ("README", b""),
    ]  # fmt: skip
    write_tar(tars / "00002.tar", members)
    assert prepare(tars, tmp_path / "out") == 1
    said = capsys.readouterr().out
    for fault in (
        "row 5: '00002.tar/a' has no caption",
        "row 6: '00002.tar/b' has no picture",
        "row 7: '00002.tar/c' has several pictures, jpg and png",
        "row 8: picture: 00002.tar/d.jpg cannot be",
        "row 9: '00002.tar/e': Expected `object`, got `array`",
        "members of no sample: 1, such as README",
    ):
        assert fault in said, said
    assert prepare(tars, tmp_path / "out", "--on-error", "skip") == 0
    index = ShardIndex.open(tmp_path / "out/pairs/plain")
    assert len(index.entries) == 5


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("cut.tar", None, "cut.tar, offset"),
        ("packed.tar", gzip.compress(b"x", mtime=0), "packed.tar is packed by gzip"),
        ("none", None, "none finds no tar"),
    ],
    ids=["cut", "packed", "none"],
)
def test_a_tar_that_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, data: bytes | None, said: str
) -> None:
    if name != "none":
        whole = write_tar(tmp_path / name, [*tar_sample(0), *tar_sample(1)]).read_bytes()
        (tmp_path / name).write_bytes(data or whole[:3000])
    assert prepare(tmp_path / name, tmp_path / "out") == 1
    assert said in capsys.readouterr().err
