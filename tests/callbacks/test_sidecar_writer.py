"""SidecarWriter: every row in its shard, holes alone are filled, nothing half-written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, final

import pytest
from lightning.pytorch import LightningDataModule
from torch.multiprocessing.spawn import ProcessRaisedException

from callbacks import SidecarWriter
from mmemb.records.outputs import SidecarOutput, SidecarRow, StepOutput
from mmemb.storage.locks import LOCK
from mmemb.storage.manifests import Origin, index_path, read_manifest
from mmemb.storage.shard_index import ShardIndex
from mmemb.storage.unfinished import Unfinished
from tests.fixtures.echo_module import (
    ONE,
    Boring,
    split,
)
from tests.fixtures.tiny_trainer import trainer_of
from tests.mmemb.storage.test_locks import held_elsewhere


@final
class ShardStub(LightningDataModule):
    """Three shards of two batches; batches of no shard in front, as candidates are."""

    SHARDS = ("a-000000.tar", "b-000000.tar", "c-000000.tar")

    def __init__(self, fail_at: str = "", refuses: str = "", changed: str = "") -> None:
        super().__init__()
        self.pending_shards: Any = None
        self.read: list[str] = []
        self.fail_at, self.refuses, self.changed = fail_at, refuses, changed

    def predict_shards(self) -> tuple[str, ...]:
        return self.SHARDS

    def shard_sizes(self) -> dict[str, int]:
        return dict.fromkeys(self.SHARDS, 4)

    def origins(self) -> dict[str, tuple[Origin, ...]]:
        sha256 = {name: 64 * ("1" if name == self.changed else "0") for name in self.SHARDS}
        return {name: (Origin(Path("data"), name, sha256[name]),) for name in self.SHARDS}

    def predict_dataloader(self) -> Any:
        return _Batches(self)


@final
class _Batches:
    def __init__(self, data: ShardStub) -> None:
        self._data = data

    def __iter__(self) -> Any:
        data, trainer = self._data, self._data.trainer
        pending = [name for name in data.SHARDS if name in data.pending_shards]
        yield StepOutput()
        for name in pending[trainer.global_rank :: trainer.world_size]:
            for half in range(2):
                data.read.append(name)
                if half and name == data.fail_at:
                    raise RuntimeError("the power went out")
                keys = [f"{name[0]}{2 * half + i}" for i in range(2)]
                rows = [SidecarRow(key, {"json": {"key": key}}, {"split": "test"}) for key in keys]
                refused = half and name == data.refuses
                written = () if refused else tuple(rows)
                yield StepOutput(sidecar=SidecarOutput(name, written, "no power." * refused))


def write(
    folder: Path, data: ShardStub, world: int = 1, fingerprint: str = "f", **options: Any
) -> None:
    writer = SidecarWriter(str(folder))
    writer.fingerprint = fingerprint
    trainer = trainer_of(folder.parent, world, callbacks=[writer], **options)
    trainer.predict(Boring(), datamodule=data, return_predictions=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


@pytest.mark.parametrize("world", [1, 2])
def test_every_row_comes_into_its_shard(tmp_path: Path, world: int) -> None:
    write(tmp_path / "out", ShardStub(), world)
    index = ShardIndex.open(tmp_path / "out")
    assert index.shard_names == ShardStub.SHARDS
    assert [e.key for e in index.entries] == [f"{s}{i}" for s in "abc" for i in range(4)]
    entry = index.by_key["b3"]
    assert json.loads(index.read(entry)["json"]) == {"key": "b3"}
    assert entry.meta == {"split": "test"}
    assert read_manifest(tmp_path / "out").fingerprint == "f"


def test_a_second_run_predicts_nothing(tmp_path: Path) -> None:
    write(tmp_path / "out", ShardStub())
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    again = ShardStub()
    write(tmp_path / "out", again)
    assert again.read == []
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize("world", [1, 2])
def test_only_the_hole_is_filled_with_the_same_bytes(tmp_path: Path, world: int) -> None:
    write(tmp_path / "out", ShardStub())
    before = contents(tmp_path / "out")
    times = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in before}
    (tmp_path / "out" / ShardStub.SHARDS[1]).unlink()
    again = ShardStub()
    write(tmp_path / "out", again, world)
    assert contents(tmp_path / "out") == before
    if world == 1:
        assert set(again.read) == {ShardStub.SHARDS[1]}
    for name in (ShardStub.SHARDS[0], ShardStub.SHARDS[2]):
        assert (tmp_path / "out" / name).stat().st_mtime_ns == times[name]


@pytest.mark.parametrize("world", [1, 2])
def test_a_shard_that_cannot_be_written_leaves_a_hole_and_the_rest_goes_on(
    tmp_path: Path, world: int
) -> None:
    folder = tmp_path / "sidecar"
    with pytest.raises((ValueError, ProcessRaisedException), match=r"1 of 3 .*-000000\.tar: no"):
        write(folder, ShardStub(refuses="b-000000.tar"), world)
    assert sorted(contents(folder)) == ["a-000000.tar", "c-000000.tar"]
    with pytest.raises(FileNotFoundError):
        read_manifest(folder)
    data = ShardStub()
    write(folder, data)
    assert set(data.read) == {"b-000000.tar"}
    write(tmp_path / "whole", ShardStub())
    assert contents(folder) == contents(tmp_path / "whole")


def test_other_settings_make_every_shard_again(tmp_path: Path) -> None:
    write(tmp_path / "out", ShardStub())
    again = ShardStub()
    write(tmp_path / "out", again, fingerprint="g")
    assert set(again.read) == set(ShardStub.SHARDS)


def test_only_the_shard_whose_source_changed_is_made_again(tmp_path: Path) -> None:
    write(tmp_path / "out", ShardStub())
    data = ShardStub(changed=ShardStub.SHARDS[1])
    write(tmp_path / "out", data)
    assert set(data.read) == {ShardStub.SHARDS[1]}
    records = ShardIndex.open(tmp_path / "out").records
    assert [records[name].made_from[0].sha256 for name in ShardStub.SHARDS] == [
        "0" * 64,
        "1" * 64,
        "0" * 64,
    ]


def test_shards_that_do_not_tell_what_they_were_made_from_are_made_again(tmp_path: Path) -> None:
    write(tmp_path / "out", ShardStub())
    path = index_path(tmp_path / "out", ShardStub.SHARDS[0])
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"made_from": []}))
    again = ShardStub()
    write(tmp_path / "out", again)
    assert set(again.read) == {ShardStub.SHARDS[0]}


def test_an_interrupted_run_leaves_whole_shards_and_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="power"):
        write(tmp_path / "out", ShardStub(fail_at=ShardStub.SHARDS[2]))
    assert list(contents(tmp_path / "out")) == [ShardStub.SHARDS[0]]
    with pytest.raises((FileNotFoundError, ValueError)):
        ShardIndex.open(tmp_path / "out")
    again = ShardStub()
    write(tmp_path / "out", again)
    assert set(again.read) == set(ShardStub.SHARDS[1:])
    assert len(ShardIndex.open(tmp_path / "out").entries) == 12


@pytest.mark.parametrize("limit", [2, 4])
def test_a_limit_leaves_whole_shards_and_no_manifest(tmp_path: Path, limit: int) -> None:
    """The first batch holds candidates; a limit of 2 cuts the first shard, 4 the second one."""
    folder, kept = tmp_path / "out", ShardStub.SHARDS[: limit // 2 - 1]
    said = rf"{3 - len(kept)} of 3 .*limit_predict_batches is {limit}"
    with pytest.raises(Unfinished, match=said):
        write(folder, ShardStub(), limit_predict_batches=limit)
    assert tuple(contents(folder)) == kept
    with pytest.raises(FileNotFoundError):
        read_manifest(folder)
    data = ShardStub()
    write(folder, data)
    assert set(data.read) == set(ShardStub.SHARDS) - set(kept)
    assert len(ShardIndex.open(folder).entries) == 12


def test_a_development_run_writes_nothing(tmp_path: Path) -> None:
    write(tmp_path / "out", ShardStub())
    before = contents(tmp_path / "out")
    data = ShardStub()
    data.pending_shards = data.SHARDS
    write(tmp_path / "out", data, fingerprint="g", fast_dev_run=3)
    assert contents(tmp_path / "out") == before
    assert read_manifest(tmp_path / "out").fingerprint == "f"
    assert data.read == ["a-000000.tar"] * 2


def test_a_writer_is_asleep_outside_predict(tmp_path: Path) -> None:
    writer = SidecarWriter(str(tmp_path / "out"))
    trainer = trainer_of(tmp_path, callbacks=[writer])
    trainer.test(Boring(), datamodule=split({1: ONE}), verbose=False)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_another_run_writes_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    with held_elsewhere(folder), pytest.raises(ValueError, match="is being written by process"):
        write(folder, ShardStub())
    write(folder, ShardStub())
    assert not (folder / LOCK).exists()
