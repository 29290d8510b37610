"""Own data: every form of table, every fault with its row, shards that train."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from datamodules import EvaluationDataModule, PairDataModule
from datamodules.prepare.__main__ import main
from mmemb.rationales import PrecomputedWriter
from mmemb.rationales.merge import merge_drafts
from mmemb.storage.shard_index import ShardIndex
from tests.fixtures.own_table import (
    flag_rows,
    nested,
    write_csv,
    write_lines,
    write_media,
    write_parquet,
)
from tests.fixtures.tiny_data import picture
from tests.fixtures.tiny_experiment import CONFIGS, run


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_media(tmp_path_factory.mktemp("own") / "media")


def prepare(table: Path, media: Path, out: Path, *more: str) -> int:
    command = ["folder", "--table", str(table), "--media", str(media), "--out", str(out)]
    return main([*command, "--workers", "1", *more])


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.tar"))
    }


@pytest.mark.parametrize(("package", "table"), [("pyarrow", "t.parquet"), ("av", "clips.csv")])
def test_a_package_that_is_missing_is_no_fault_of_a_row(
    package: str, table: str, media: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    write_parquet(tmp_path / "t.parquet", flag_rows())
    clip = {"id": "a", "task": "clips", "split": "train", "query_media": "clip.mp4",
            "target_text": "bars"}  # fmt: skip
    write_csv(tmp_path / "clips.csv", [clip])

    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    assert prepare(tmp_path / table, media, tmp_path / "out", "--on-error", "skip") == 1
    said = capsys.readouterr().err
    assert f"needs the package {package}, which is not installed: run `pip install" in said


def test_all_forms_of_a_table_become_the_same_shards(media: Path, tmp_path: Path) -> None:
    rows = flag_rows()
    tables = [
        write_csv(tmp_path / "t.csv", rows),
        write_parquet(tmp_path / "t.parquet", rows),
        write_lines(tmp_path / "t.jsonl", rows),
        write_lines(tmp_path / "nested.jsonl", list(map(nested, rows))),
    ]
    found = []
    for number, table in enumerate(tables):
        assert prepare(table, media, tmp_path / str(number)) == 0
        found.append(digests(tmp_path / str(number)))
    assert len(found[0]) == 3
    assert all(other == found[0] for other in found)


def test_the_shards_are_read_as_pairs_and_queries(media: Path, tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", flag_rows())
    prepare(table, media, tmp_path / "out")
    data = PairDataModule(str(tmp_path / "out"), ["pairs/plain"], 4, 4, {}, 0)
    batch = next(iter(data.train_dataloader()))
    assert batch.targets[0].media[0].pixels is not None
    assert batch.queries[0].instruction == "Find it."
    candidates, queries = EvaluationDataModule(
        str(tmp_path / "out"), 100, splits=["test"]
    ).test_dataloader()
    found = next(iter(queries)).queries
    assert [query.key for query in found.queries] == [f"flag-{n}" for n in range(18, 24)]
    assert dict(found.queries[0].relevance) == {"flags/18.webp": 1.0}
    (gallery,) = list(candidates)
    assert len(gallery.candidates.candidates) == 24


@pytest.mark.slow  # each of the processes imports torch
def test_two_processes_write_what_one_does(media: Path, tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", flag_rows())
    prepare(table, media, tmp_path / "one")
    prepare(table, media, tmp_path / "two", "--workers", "2")
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_a_second_run_finds_everything_and_a_change_is_made_anew(
    media: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_csv(tmp_path / "t.csv", flag_rows())
    prepare(table, media, tmp_path / "out")
    before = digests(tmp_path / "out")
    prepare(table, media, tmp_path / "out")
    assert "everything is there" in capsys.readouterr().out
    write_csv(table, flag_rows()[:-1])
    prepare(table, media, tmp_path / "out")
    assert digests(tmp_path / "out") != before


def test_a_picture_replaced_with_equal_size_and_time_is_seen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `unzip`, `rsync -t` and archives with fixed times leave it."""
    media = write_media(tmp_path / "media")
    table = write_csv(tmp_path / "t.csv", flag_rows())
    prepare(table, media, tmp_path / "out")
    path = media / "flags/00.webp"
    times, size = path.stat(), max(p.stat().st_size for p in (media / "flags").iterdir())
    for data in (path.read_bytes(), picture(99)):
        path.write_bytes(data.ljust(size + 1000, b"\0"))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        capsys.readouterr()
        prepare(table, media, tmp_path / "out")
        assert "everything is there" not in capsys.readouterr().out
    index = ShardIndex.open(tmp_path / "out/candidates")
    assert path.read_bytes() in [index.read(entry).get("c0.webp") for entry in index.entries]
    shutil.copytree(media, tmp_path / "moved")
    prepare(table, tmp_path / "moved", tmp_path / "out", "--recheck")
    assert "everything is there" in capsys.readouterr().out, "equal bytes, wherever they lie"


def test_an_interrupted_run_goes_on(media: Path, tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", flag_rows())
    prepare(table, media, tmp_path / "out")
    before = digests(tmp_path / "out")
    (tmp_path / "out/manifest.json").unlink()
    for path in (tmp_path / "out/queries").iterdir():
        path.unlink()
    prepare(table, media, tmp_path / "out")
    assert digests(tmp_path / "out") == before


def test_clips_and_frames_and_several_pictures(media: Path, tmp_path: Path) -> None:
    rows = [
        {"id": "a", "task": "clips", "split": "train", "query_media": "clip.mp4",
         "target_text": "brighter"},
        {"id": "b", "task": "clips", "split": "train", "query_text": "bars",
         "target_media": "frames/00"},
        {"id": "c", "task": "clips", "split": "train", "target_text": "two flags",
         "query_media": "flags/00.webp | flags/01.webp"},
    ]  # fmt: skip
    table = write_lines(tmp_path / "t.jsonl", rows)
    assert prepare(table, media, tmp_path / "out", "--frames", "4") == 0
    index = ShardIndex.open(tmp_path / "out/pairs/plain")
    members = {entry.key: sorted(entry.media) for entry in index.entries}
    assert members["a"] == [f"q0.{n:03d}.webp" for n in range(4)]
    assert members["b"] == [f"t0.{n:03d}.webp" for n in range(4)]
    assert members["c"] == ["q0.webp", "q1.webp"]
    frames = index.read(index.by_key["b"])
    assert frames["t0.001.webp"] == picture(0, frame=3), "f10 comes after f9"


@pytest.mark.parametrize("num_with", [1, 15])
def test_what_is_left_of_a_mixed_task_can_be_evaluated(
    media: Path, tmp_path: Path, num_with: int
) -> None:
    rows = flag_rows()
    for row in rows[8 : 8 + num_with]:
        row["negative_text"] = "not this"
    table = write_lines(tmp_path / "t.jsonl", rows)
    assert prepare(table, media, tmp_path / "out", "--on-error", "skip") == 0
    _, queries = EvaluationDataModule(str(tmp_path / "out"), 100, splits=["test"]).test_dataloader()
    found = next(iter(queries)).queries
    own = {len(query.candidates or ()) for query in found.queries}
    assert (own, len(found.queries)) == (({0}, 6) if num_with == 1 else ({2}, 5))


def test_nothing_of_a_former_table_stays(media: Path, tmp_path: Path) -> None:
    rows = flag_rows()
    for n, row in enumerate(rows):
        row["negative_media"] = f"flags/{(n + 1) % 24:02d}.webp"
    table = write_lines(tmp_path / "t.jsonl", rows)
    prepare(table, media, tmp_path / "out")
    before = {path.parent.name for path in (tmp_path / "out").rglob("*.tar")}
    assert before == {"plain", "queries", "candidates", "negatives"}
    write_lines(table, [row for row in flag_rows() if row["split"] == "train"])
    prepare(table, media, tmp_path / "out")
    found = [*(tmp_path / "out").rglob("*.tar"), *(tmp_path / "out").rglob("*/manifest.json")]
    assert {path.parent.name for path in found} == {"plain", "candidates"}


def test_given_negatives_are_trained_on_and_ranked_against(media: Path, tmp_path: Path) -> None:
    rows = flag_rows()
    for n, row in enumerate(rows):
        row["negative_media"] = f"flags/{(n + 1) % 24:02d}.webp"
    prepare(write_lines(tmp_path / "t.jsonl", rows), media, tmp_path / "out")
    root = str(tmp_path / "out")
    data = PairDataModule(
        root, ["pairs/plain"], 4, 4, {}, 0, negatives=f"{root}/negatives", num_negatives=1
    )
    batch = next(iter(data.train_dataloader()))
    assert all(len(found) == 1 for found in batch.negatives)
    _, queries = EvaluationDataModule(root, 100, splits=["test"]).test_dataloader()
    found = next(iter(queries)).queries
    assert found.queries[0].candidates == (18, 19)


def test_rationales_of_others_are_joined_by_id(media: Path, tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", flag_rows())
    lines = [{"id": "flag-03", "rationales": ["a red one", {"thinking": "bars", "answer": "blue"}]}]
    given = write_lines(tmp_path / "r.jsonl", lines)
    assert prepare(table, media, tmp_path / "out", "--rationales", str(given)) == 0
    writer = PrecomputedWriter(str(tmp_path / "out/rationale_pool.json"), "empty")
    data = PairDataModule(str(tmp_path / "out"), ["pairs/plain"], 8, 8, {}, 0)
    batch = next(iter(data.train_dataloader()))
    written = writer.write(batch.queries, torch.tensor([[-1, 1]] * 8))
    texts = {key: [r.plain for r in pool] for key, pool in zip(batch.keys, written, strict=True)}
    assert texts.pop("flag-03") == ["a red one", "bars blue"]
    assert not any(texts.values())

    # A text in one piece is as good as one with a thought.
    assert not any(merge_drafts(pool)[1] for pool in written if pool)


@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_own_data_trains_with_one_overlay(media: Path, tmp_path: Path) -> None:
    prepare(write_csv(tmp_path / "t.csv", flag_rows()), media, tmp_path / "data")
    command = ["fit", "--config", str(CONFIGS / "own/train.yaml")]
    command += ["--config", str(CONFIGS / "cpu.yaml"), "--data_root", str(tmp_path / "data")]
    command += ["--runs", str(tmp_path / "runs"), "--needs.memory_gib", "0.1"]
    command += ["--model.backbone.model", str(CONFIGS / "backbone/clip_tiny.json")]
    command += ["--model.backbone.tokenizer", "bytes", "--data.batch_size", "8"]
    run([*command, "--data.group_size", "8", "--lr", "0.1"])
    assert (tmp_path / "runs/own/train/backbone/config.json").is_file()

    # The weights that the training left, and the same backbone as it came.
    test = ["test", "--config", str(CONFIGS / "own/test.yaml"), "--runs", str(tmp_path / "runs")]
    test += ["--data_root", str(tmp_path / "data"), "--needs.memory_gib", "0.1"]
    run(test)
    overlay = str(CONFIGS / "backbone/clip_tiny.yaml")
    run([*test, "--config", overlay, "--name", "untrained-test"])
    trained, untrained = (
        json.loads((tmp_path / f"runs/own/{name}-test/ranks.json").read_text())["queries"]
        for name in ("trained", "untrained")
    )
    assert len(trained) == 6
    assert [q["key"] for q in trained] == [q["key"] for q in untrained]
    assert [q["rank"] for q in trained] != [q["rank"] for q in untrained]
    summary = json.loads((tmp_path / "runs/own/trained-test/summary.json").read_text())
    assert summary["metrics"]["test/chance@1"] == pytest.approx(1 / trained[0]["candidates"])


@pytest.mark.parametrize(
    "lost", ["queries/queries-000000.tar", "candidates/candidates-000000.index.json", "tasks.json"]
)
def test_what_was_lost_is_made_again(
    media: Path, tmp_path: Path, lost: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table, out = write_csv(tmp_path / "t.csv", flag_rows()), tmp_path / "out"
    prepare(table, media, out)
    before = digests(out)
    (out / lost).unlink()
    prepare(table, media, out)
    assert "everything is there" not in capsys.readouterr().out
    assert (out / lost).is_file()
    assert digests(out) == before
