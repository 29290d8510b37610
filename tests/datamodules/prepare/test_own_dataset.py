"""A local Hugging Face data set: Parquet with pictures, and what `datasets` saves to disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from datamodules.prepare.__main__ import main
from mmemb.storage.shard_index import ShardIndex
from tests.datamodules.prepare.test_prepare_folder import digests
from tests.fixtures.own_containers import captioned, image_type, write_dict, write_parquets
from tests.fixtures.tiny_data import picture


def prepare(place: Path, out: Path, *more: str) -> int:
    command = ["folder", "--dataset", str(place), "--out", str(out), "--workers", "1"]
    return main([*command, *more])


def candidates(out: Path) -> list[Mapping[str, bytes]]:
    index = ShardIndex.open(out / "candidates")
    return [index.read(entry) for entry in index.entries]


@pytest.mark.parametrize("write", [write_dict, write_parquets])
def test_every_form_becomes_pairs_and_queries(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], write: Any
) -> None:
    place, out = write(tmp_path / "hub"), tmp_path / "out"
    assert prepare(place, out, "--map", "label=concept") == 0
    assert "splits by the names of files and folders: test, train, val" in capsys.readouterr().out
    assert sorted(m["c0.webp"] for m in candidates(out)) == sorted(picture(n) for n in range(12))

    pairs, queries = (ShardIndex.open(out / name).entries for name in ("pairs/plain", "queries"))
    assert [entry.meta["concept"] for entry in pairs] == ["red", "blue"] * 3
    assert sorted(entry.meta["split"] for entry in queries) == ["test"] * 4 + ["val"] * 2

    before = digests(out)
    prepare(place, out, "--map", "label=concept")
    assert "everything is there" in capsys.readouterr().out
    assert digests(out) == before


def test_the_users_split_counts_more_than_names_of_files(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert prepare(write_parquets(tmp_path / "hub"), out, "--split", "train") == 0
    assert len(ShardIndex.open(out / "pairs/plain").entries) == 12


def test_pictures_are_read_by_row_groups_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of all pictures must not be in memory, neither for its rows nor for its bytes."""
    place = tmp_path / "train.parquet"
    parquet.write_table(captioned(range(30)), place, row_group_size=3)
    read = []

    class Spy(parquet.ParquetFile):  # type: ignore[misc]
        def read_row_group(self, group: int, **more: Any) -> pa.Table:
            read.append(group)
            return super().read_row_group(group, **more)

        def iter_batches(self, **more: Any) -> Any:
            assert more["columns"] == ["image.path", "caption"]
            return super().iter_batches(**more)

        def read(self, *args: Any, **more: Any) -> Any:
            raise AssertionError("reads the whole file")

    monkeypatch.setattr(parquet, "ParquetFile", Spy)
    assert prepare(place, tmp_path / "out") == 0
    # Once to check, once as candidates, once as pairs: ten groups of three rows each.
    assert read == list(range(10)) * 3


def test_a_column_is_not_the_field_of_another_one(tmp_path: Path) -> None:
    """Parquet asks for `a.bytes` and for the field `bytes` of `a` by the same words."""
    image = pa.array([{"bytes": picture(n), "path": None} for n in range(4)], image_type())
    own = pa.array([picture(n) for n in range(4, 8)])
    table = {"a": image, "a.bytes": own, "caption": [f"flag {n}" for n in range(4)]}
    parquet.write_table(pa.table(table), tmp_path / "a.parquet")

    mapped = ["--map", "a.bytes=target_media", "caption=query_text", "--split", "train"]
    assert prepare(tmp_path / "a.parquet", tmp_path / "out", *mapped) == 0
    shown = [members["c0.webp"] for members in candidates(tmp_path / "out")]
    assert sorted(shown) == sorted(picture(n) for n in range(4, 8))


def test_faults_of_rows_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = [
        {"bytes": picture(0), "path": "a.jpg"}, None, {"bytes": None, "path": "c.jpg"},
        {"bytes": b"junk", "path": None}, {"bytes": picture(4), "path": None},
    ]  # fmt: skip
    table = captioned(range(5)).set_column(0, "image", pa.array(images, image_type()))
    table = table.set_column(2, "label", pa.array([0, 1, 0, 1, 7]))
    parquet.write_table(table, tmp_path / "train.parquet")
    out = tmp_path / "out"
    assert prepare(tmp_path / "train.parquet", out, "--check", "--map", "label=concept") == 1
    said = capsys.readouterr().out
    for fault in (
        "row 2: an empty side",
        "row 3: image: train.parquet/image/2 holds no bytes, perhaps a path alone",
        "row 4: image: train.parquet/image/3 cannot be decoded",
        "row 5: label 7 is no label, of which there are 2",
    ):
        assert fault in said, said


def other_columns(folder: Path) -> None:
    parquet.write_table(pa.table({"caption": ["a"]}), write_parquets(folder) / "data/z.parquet")


def old_index(folder: Path) -> None:
    state = write_dict(folder) / "train/state.json"
    state.write_text(json.dumps({"_data_files": [], "_indices_data_files": [{"filename": "i"}]}))


def a_way_out(folder: Path) -> None:
    state = write_dict(folder) / "test/state.json"
    state.write_text(json.dumps({"_data_files": [{"filename": "../train/data.arrow"}]}))


def cut_arrow(folder: Path) -> None:
    path = write_dict(folder) / "train/data-00000-of-00001.arrow"
    path.write_bytes(path.read_bytes()[:-3000])


def cut_parquet(folder: Path) -> None:
    path = write_parquets(folder) / "data/train-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:-30])


def a_link_out(folder: Path) -> None:
    elsewhere = write_parquets(folder.parent / "blobs") / "data"
    folder.mkdir()
    (folder / "train.parquet").symlink_to(elsewhere / "train-00000-of-00001.parquet")


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (other_columns, "z.parquet has other columns than"),
        (old_index, "call flatten_indices() and save it again"),
        (a_way_out, "state.json names '../train/data.arrow'"),
        (cut_arrow, "is no whole Arrow stream"),
        (cut_parquet, "is no whole Parquet file"),
        (a_link_out, "is a link that leads out of"),
        (Path.mkdir, "holds no data set: expected Parquet files, or a folder"),
    ],
)
def test_a_data_set_that_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], write: Any, said: str
) -> None:
    write(tmp_path / "hub")
    assert prepare(tmp_path / "hub", tmp_path / "out") == 1
    assert said in capsys.readouterr().err
