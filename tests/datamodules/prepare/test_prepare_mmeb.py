"""MMEB-V2 converters: every layout is written as published, converted, and read back."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from datamodules.evaluation import EvaluationDataModule
from datamodules.prepare.mmeb.folders import Settings
from datamodules.prepare.mmeb.frames import natural_key
from datamodules.prepare.mmeb.layouts import LAYOUTS, plan_task
from datamodules.prepare.mmeb.write import write_root
from mmemb.benchmarks.mmeb_v2 import TASKS
from mmemb.media.frames import choose_frames
from mmemb.records.inputs import Side
from mmemb.storage.shard_index import ShardIndex
from tests.fixtures.mmeb_cases import CASES
from tests.fixtures.mmeb_sources import FRAMES, picture


def convert(case, source: Path, out: Path, **settings) -> dict:
    return write_root(plan_task(case.task, source), out, Settings(**settings))


def read_back(root: Path) -> tuple[list, list]:
    module = EvaluationDataModule(root=str(root), batch_size=8, splits=["test"])
    candidates, queries = module.test_dataloader()
    return (
        [c for batch in candidates for c in batch.candidates.candidates],
        [q for batch in queries for q in batch.queries.queries],
    )


def shape_of(side: Side) -> str:
    kinds = Counter(media.kind for media in side.media)
    assert len(kinds) <= 1
    return "image" if kinds == {"image": 1} else f"{kinds['frame']} frames" if kinds else ""


def test_every_layout_of_the_registry_has_a_converter_and_a_case() -> None:
    assert {task.layout for task in TASKS} == set(LAYOUTS) == set(CASES)


@pytest.mark.parametrize("layout", CASES)
def test_a_layout_is_read_back_as_it_was_meant(layout: str, tmp_path: Path) -> None:
    case = CASES[layout](tmp_path / "source")
    manifest = convert(case, tmp_path / "source", tmp_path / "out", workers=2)
    candidates, queries = read_back(tmp_path / "out")
    assert [(c.name, c.side.text) for c in candidates] == list(case.candidates)
    assert {c.side.instruction for c in candidates} == {case.instruction}
    assert {shape_of(c.side) for c in candidates} == {case.media}
    assert [q.key for q in queries] == [f"{n:08d}" for n in range(len(case.queries))]
    for query, asked in zip(queries, case.queries, strict=True):
        assert (query.side.text, query.side.instruction) == (asked.text, asked.instruction)
        assert shape_of(query.side) == asked.media
        assert (query.relevance, query.answers) == (asked.relevance, asked.answers)
        names = query.candidates and [candidates[row].name for row in query.candidates]
        assert names == (asked.names and list(asked.names))
        assert (query.task, query.split, query.gallery) == (case.task.name, "test", case.task.name)
        assert query.concept.startswith(f"{case.task.name}:")
    counts = manifest["counts"]
    assert (counts["queries"], counts["candidates"]) == (len(queries), len(candidates))
    assert not manifest["partial"]
    assert all(len(source["sha256"]) == 64 for source in manifest["sources"])


def test_bytes_of_pictures_do_not_change(tmp_path: Path) -> None:
    case = CASES["image_cls"](tmp_path)
    convert(case, tmp_path, tmp_path / "out")
    index = ShardIndex.open(tmp_path / "out/queries")
    first, second = (index.read(entry) for entry in index.entries)
    assert first["q0.jpg"] == (tmp_path / "image-tasks/VOC/0.jpg").read_bytes()
    assert second["q0.png"] == (tmp_path / "image-tasks/VOC/1.png").read_bytes()


def test_frames_are_taken_evenly_in_natural_order(tmp_path: Path) -> None:
    case = CASES["video_classification"](tmp_path)
    convert(case, tmp_path, tmp_path / "out")
    index = ShardIndex.open(tmp_path / "out/queries")
    members = index.read(index.entries[0])
    frames = [members[f"q0.{n:03d}.jpg"] for n in range(8)]
    assert frames == [picture(n, "JPEG") for n in (0, 2, 5, 8, 10, 13, 16, 19)]


@pytest.mark.parametrize(
    ("count", "wanted", "chosen"),
    [(8, 8, list(range(8))), (7, 8, list(range(7))), (9, 8, [0, 1, 2, 3, 4, 5, 6, 8]),
     (64, 8, [0, 9, 18, 27, 36, 45, 54, 63]), (5, 1, [0]), (3, None, [0, 1, 2]), (0, 8, [])],
)  # fmt: skip
def test_choice_of_frames(count: int, wanted: int | None, chosen: list[int]) -> None:
    assert choose_frames(count, wanted) == chosen


def test_natural_order() -> None:
    names = ["10.jpg", "9b.jpg", "9a2.jpg", "9a10.jpg", "0001.jpg", "B.jpg", "a.jpg"]
    expected = ["0001.jpg", "9a2.jpg", "9a10.jpg", "9b.jpg", "10.jpg", "a.jpg", "B.jpg"]
    assert sorted(names, key=natural_key) == expected


def test_the_captions_that_the_benchmark_drops_are_counted(tmp_path: Path) -> None:
    case = CASES["image_t2i"](tmp_path)
    assert convert(case, tmp_path, tmp_path / "out")["counts"]["shadowed"] == 1


def test_questions_about_one_video_share_a_concept_and_no_fact(tmp_path: Path) -> None:
    case = CASES["image_qa"](tmp_path)
    convert(case, tmp_path, tmp_path / "out")
    first, second = read_back(tmp_path / "out")[1]
    assert first.concept == second.concept == "OK-VQA:a.jpg"
    assert first.fact != second.fact


def test_names_of_moments_are_equal_on_every_machine(tmp_path: Path) -> None:
    names = []
    for home in ("here", "there"):
        case = CASES["moment_retrieval"](tmp_path / home)
        convert(case, tmp_path / home, tmp_path / f"out-{home}")
        names.append([c.name for c in read_back(tmp_path / f"out-{home}")[0]])
    assert names[0] == names[1]
    assert names[0][0].startswith(f"{FRAMES}/video_mret/Charades_STA/")
    shards = [sorted((tmp_path / f"out-{h}").rglob("*.tar")) for h in ("here", "there")]
    contents = [[path.read_bytes() for path in paths] for paths in shards]
    assert contents[0] == contents[1], "equal content is equal bytes"


def test_frames_where_the_retrieval_archive_unpacks_them(tmp_path: Path) -> None:
    case = CASES["vatex"](tmp_path)
    odd = tmp_path / FRAMES / "video_ret/data/ziyan/video_retrieval/VATEX"
    odd.mkdir(parents=True)
    (tmp_path / FRAMES / "video_ret/VATEX").rename(odd / "frames")
    assert convert(case, tmp_path, tmp_path / "out")["counts"]["candidates"] == 2


def test_the_archive_of_images_may_keep_its_top_folder(tmp_path: Path) -> None:
    case = CASES["image_cls"](tmp_path)
    (tmp_path / "image-tasks").rename(tmp_path / "MMEB")
    (tmp_path / "image-tasks").mkdir()
    (tmp_path / "MMEB").rename(tmp_path / "image-tasks/MMEB")
    assert convert(case, tmp_path, tmp_path / "out")["counts"]["queries"] == 2


def test_tasks_and_manifest_are_written_for_the_scorer(tmp_path: Path) -> None:
    case = CASES["beir"](tmp_path)
    convert(case, tmp_path, tmp_path / "out")
    (task,) = json.loads((tmp_path / "out/tasks.json").read_bytes())
    assert (task["name"], task["metric"]) == (case.task.name, "ndcg_linear@5")
    manifest = json.loads((tmp_path / "out/manifest.json").read_bytes())
    assert manifest["sources"][0]["package"].endswith("queries-data/part0.parquet")
    assert not [p for p in (tmp_path / "out").rglob("*") if p.suffix == ".tmp"]
