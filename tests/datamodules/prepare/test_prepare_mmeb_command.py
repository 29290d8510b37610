"""`prepare mmeb-v2`: the command, what it skips, and what it goes on from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from datamodules.benchmark import BenchmarkDataModule
from datamodules.data_roots import read_benchmark
from datamodules.evaluation import EvaluationDataModule
from datamodules.prepare import __main__ as prepare
from datamodules.prepare.mmeb import command, folders, pictures, samples, write
from datamodules.prepare.mmeb.folders import Settings
from datamodules.prepare.mmeb.layouts import plan_task
from datamodules.prepare.mmeb.write import write_root
from experiments.bench.converter import converter_and_plain
from tests.fixtures.mmeb_cases import CASES
from tests.fixtures.mmeb_sources import picture, put

SKIP, RAISE = Settings(on_error="skip"), Settings()


@pytest.fixture
def one_row_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "_WITH_MEDIA", 1)
    monkeypatch.setattr(write, "_TEXT_ONLY", 1)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> list:
    """What the command believes to be the benchmark."""
    tasks: list = []
    monkeypatch.setattr(command, "tasks_of", lambda revision: tuple(tasks))
    return tasks


def files_of(root: Path) -> dict[str, bytes]:
    # Remembered hashes of the source depend on its age in seconds, and are no data.
    files = (p for p in root.rglob("*") if p.is_file() and p.name != write.HASHES)
    return {str(p.relative_to(root)): p.read_bytes() for p in files}


def convert(case, source: Path, settings: Settings) -> dict:
    return write_root(plan_task(case.task, source), source / "out", settings)


def rows_of(root: Path) -> tuple[list, list]:
    candidates, queries = EvaluationDataModule(root=str(root), batch_size=8).test_dataloader()
    return (
        [c for batch in candidates for c in batch.candidates.candidates],
        [q for batch in queries for q in batch.queries.queries],
    )


def test_the_command_writes_a_root_for_each_task(tmp_path: Path, registry, capsys) -> None:
    registry += [CASES[name](tmp_path).task for name in ("image_cls", "beir", "nextqa")]
    arguments = ["mmeb-v2", "--source", str(tmp_path), "--out", str(tmp_path / "out")]
    assert prepare.main([*arguments, "--workers", "2"]) == 0
    assert "[1/3] image/VOC2007: 2 queries, 2 candidates\n" in capsys.readouterr().out
    roots = {str(p.parent.relative_to(tmp_path / "out")) for p in tmp_path.rglob("tasks.json")}
    assert roots == {"image/VOC2007", f"visdoc/{registry[1].name}", "video/NExTQA"}
    found = {root.path: root for root in read_benchmark(tmp_path / "out")}
    assert roots == found.keys() == BenchmarkDataModule(str(tmp_path / "out"), 8).roots().keys()
    (asked,) = found["video/NExTQA"].queries
    names = [found["video/NExTQA"].name_of_row[row][1] for row in asked.candidates]
    assert names == ["jump", "run", "sit", "run", "eat"]
    before = files_of(tmp_path / "out")
    assert prepare.main([*arguments, "--tasks", "NExTQA", "--workers", "1"]) == 0
    assert files_of(tmp_path / "out") == before


def test_a_check_writes_nothing(tmp_path: Path, registry, capsys) -> None:
    registry += [CASES[name](tmp_path).task for name in ("image_cls", "beir", "vatex")]
    arguments = ["mmeb-v2", "--source", str(tmp_path), "--out", str(tmp_path / "out"), "--check"]
    before = files_of(tmp_path)
    assert prepare.main(arguments) == 0
    assert "[3/3] video/VATEX: 2 queries, 2 candidates: as published" in capsys.readouterr().out
    (tmp_path / "image-tasks/VOC/0.jpg").unlink()
    assert prepare.main(arguments) == 1
    assert "VOC2007: 1 file or folder cannot be had" in capsys.readouterr().err
    assert prepare.main([*arguments, "--on-error", "skip"]) == 0
    assert "2 candidates, 1 missing: as published" in capsys.readouterr().out
    assert files_of(tmp_path).keys() == before.keys() - {"image-tasks/VOC/0.jpg"}


def test_a_task_that_fails_does_not_stop_the_others(tmp_path: Path, registry, capsys) -> None:
    good = CASES["image_cls"](tmp_path).task
    registry += [replace(good, name="Lost", config="Lost"), good]
    arguments = ["mmeb-v2", "--source", str(tmp_path), "--out", str(tmp_path / "out")]
    assert prepare.main(arguments) == 1
    assert (tmp_path / "out/image/VOC2007/manifest.json").is_file()
    error = capsys.readouterr().err
    assert "1 of 2 tasks failed:\n- Lost: " in error
    assert not (tmp_path / "out/image/Lost").exists()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["--tasks", "VOC2008"], "MMEB-V2 has no task 'VOC2008'"),
        (["--workers", "0"], "--workers 0: expected 1 or more"),
        (["--source", "nowhere"], "--source nowhere is no folder"),
    ],
)
def test_wrong_arguments(changes: list[str], expected: str, tmp_path: Path, capsys) -> None:
    assert prepare.main(["mmeb-v2", "--source", str(tmp_path), *changes]) == 1
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["image_cls", "image_t2i", "vatex", "beir", "momentseeker"])
def test_threads_change_no_byte(layout: str, tmp_path: Path, one_row_a_shard) -> None:
    plan = plan_task((case := CASES[layout](tmp_path)).task, tmp_path)
    for workers in (1, 3):
        write_root(plan, tmp_path / f"out-{workers}", Settings(workers=workers))
    assert files_of(tmp_path / "out-1") == files_of(tmp_path / "out-3")
    assert len(list((tmp_path / "out-1").rglob("*.tar"))) > len(case.queries)


def test_a_broken_picture_stops_or_makes_a_partial_root(tmp_path: Path) -> None:
    case = CASES["image_cls"](tmp_path)
    put(tmp_path / "image-tasks/VOC/0.jpg", b"junk")
    with pytest.raises(ValueError, match=r"VOC/0\.jpg cannot be decoded: expected a whole WEBP"):
        convert(case, tmp_path, RAISE)
    assert not (tmp_path / "out/tasks.json").exists()
    manifest = convert(case, tmp_path, SKIP)
    assert manifest["partial"]
    assert manifest["counts"]["queries"] == 1
    (why,) = manifest["skipped"]
    assert why.startswith("queries 0: ")
    assert "VOC/0.jpg cannot be decoded" in why
    assert [query.key for query in rows_of(tmp_path / "out")[1]] == ["00000001"]


def test_lists_and_grades_follow_when_candidates_are_lost(tmp_path: Path) -> None:
    """Query 0 loses a wrong candidate; the same picture is right for query 1, which goes."""
    case = CASES["image_t2i"](tmp_path)
    put(tmp_path / "image-tasks/w/2.jpg", b"junk")
    manifest = convert(case, tmp_path, SKIP)
    candidates, (query,) = rows_of(tmp_path / "out")
    assert [c.name for c in candidates] == ["w/1.jpg", "w/3.jpg"]
    assert query.candidates == (0,)
    assert manifest["counts"]["candidates"] == 2
    assert [why.split(":")[0] for why in manifest["skipped"]] == ["candidates 1", "queries 1"]
    assert "none of the query's right candidates is left" in manifest["skipped"][1]


def test_a_missing_clip_is_missing_by_name(tmp_path: Path) -> None:
    case = CASES["momentseeker"](tmp_path)
    for frame in (tmp_path / case.candidates[0][0]).iterdir():
        frame.unlink()
    with pytest.raises(ValueError, match=r"m_0 holds no frames: expected a folder of \.jpg"):
        convert(case, tmp_path, RAISE)
    convert(case, tmp_path, SKIP)
    candidates, queries = rows_of(tmp_path / "out")
    assert len(candidates) == 2
    assert {query.candidates for query in queries} == {(0, 1)}
    assert {len(query.relevance) for query in queries} == {1}


def test_a_mended_source_completes_a_partial_root(tmp_path: Path, one_row_a_shard) -> None:
    case, path = CASES["image_t2i"](tmp_path), tmp_path / "image-tasks/w/2.jpg"
    whole = write_root(plan_task(case.task, tmp_path), tmp_path / "whole", RAISE)
    good = path.read_bytes()
    put(path, b"x" * len(good))
    assert convert(case, tmp_path, SKIP)["partial"]
    assert convert(case, tmp_path, SKIP)["partial"], "as asked for"
    with pytest.raises(ValueError, match="w/2.jpg"):
        convert(case, tmp_path, RAISE)
    put(path, good)
    assert convert(case, tmp_path, RAISE) == whole
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_a_finished_task_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["beir"](tmp_path)
    first = convert(case, tmp_path, RAISE)
    monkeypatch.setattr(folders, "write_shard", None)
    monkeypatch.setattr(pictures, "check_picture", None)
    assert convert(case, tmp_path, RAISE) == json.loads(json.dumps(first))


def test_an_interrupted_task_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_row_a_shard
) -> None:
    case = CASES["beir"](tmp_path)
    real, made = samples.candidate_sample, []

    def dies(plan, number, media):
        if number == 2:
            raise KeyboardInterrupt
        made.append(number)
        return real(plan, number, media)

    monkeypatch.setattr(write, "candidate_sample", dies)
    with pytest.raises(KeyboardInterrupt):
        convert(case, tmp_path, RAISE)
    assert not (tmp_path / "out/tasks.json").exists()
    assert made[:2] == [0, 1]
    again = []
    monkeypatch.setattr(write, "candidate_sample", lambda p, n, m: again.append(n) or real(p, n, m))
    convert(case, tmp_path, RAISE)
    assert not set(made) & set(again)
    assert [c.name for c in rows_of(tmp_path / "out")[0]] == list("3142")


def test_other_annotations_make_the_root_again(tmp_path: Path, one_row_a_shard) -> None:
    case = CASES["image_cls"](tmp_path)
    first = convert(case, tmp_path, RAISE)
    put(tmp_path / "image-tasks/VOC/0.jpg", picture(77, "JPEG") + b"more")
    second = convert(case, tmp_path, RAISE)
    assert first["fingerprint"] != second["fingerprint"]
    assert len(rows_of(tmp_path / "out")[1]) == 2


def test_progress_counts_shards(tmp_path: Path, one_row_a_shard) -> None:
    case, told = CASES["vatex"](tmp_path), []
    convert(case, tmp_path, Settings(tell=lambda *line: told.append(line)))
    assert told == [(name, n, 2) for name in ("candidates", "queries") for n in (1, 2)]


def test_both_sides_of_the_bench_do_the_same_work(tmp_path: Path) -> None:
    for work in converter_and_plain(tmp_path, num_pictures=6):
        work()
    sizes = [path.stat().st_size for path in tmp_path.rglob("*.tar")]
    assert len(list(tmp_path.glob("plain-*.tar"))) == 1
    assert max(sizes) / 6 > 10_000, "both hold the pictures"
