"""Profile `full` of the pocket data, built from tiny archives: clips, cities, labels, cuts."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datamodules import EvaluationDataModule
from datamodules.prepare.pocket import build as pocket
from datamodules.prepare.pocket.art import SIZE
from datamodules.prepare.pocket.countries import read_countries, with_cities
from datamodules.prepare.pocket.full_tasks import NUM_FRAMES, TASKS
from datamodules.prepare.pocket.sources import CITIES, CLIPS, NOTO
from tests.datamodules.prepare import test_prepare as mini_tests
from tests.fixtures.prepare_sources import write_more_sources, write_sources

samples = mini_tests.samples

Archives = dict[str, Path]


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Archives:
    folder = tmp_path_factory.mktemp("archives")
    return write_sources(folder) | write_more_sources(folder)


@pytest.fixture(scope="module")
def root(archives: Archives, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full")
    pocket.build_data(folder, archives, "full", tell=lambda line: None)
    return folder


def of_task(root: Path, folder: str, task: str) -> list[tuple[Any, dict[str, Any]]]:
    return [(e, data) for e, data in samples(root, folder) if data.get("task") == task]


def test_all_tasks_are_there_and_ready(root: Path, archives: Archives) -> None:
    tasks = json.loads((root / "tasks.json").read_text())
    assert [task["name"] for task in tasks] == [task.name for task in TASKS]
    assert {t["name"] for t in tasks if t["think"]} >= {"flag-capital", "flag-city-t2i"}
    mark = pocket.fingerprint(pocket.sources.data_of("full"), "full")
    assert pocket.ready_manifest(root, mark)
    (labels := root / "labels.json").rename(root / "moved.json")
    assert pocket.ready_manifest(root, mark) is None
    (root / "moved.json").rename(labels)


def test_nothing_that_is_asked_is_trained(root: Path) -> None:
    mini_tests.test_no_asked_fact_is_trained(root)
    mini_tests.test_parts_share_no_concept_outside_tasks_that_say_so(root)
    mini_tests.test_mixed_wordings_are_never_trained_and_half_of_their_answers_are(root)
    mini_tests.test_evaluated_emoji_were_never_drawn_for_training(root)


@pytest.mark.slow
def test_a_concept_lies_in_the_part_that_mini_puts_it_in(
    root: Path, archives: Archives, tmp_path: Path
) -> None:
    mini = {name: path for name, path in archives.items() if name not in more_sources()}
    pocket.build_data(tmp_path, mini, "mini", tell=lambda line: None)
    parts = {
        where: {q["concept"]: q["split"] for _, q in samples(where, "queries")
                if q["task"] in ("emoji-t2i", "flag-capital-t2i")}
        for where in (tmp_path, root)
    }  # fmt: skip
    assert parts[tmp_path] == parts[root]
    assert not (tmp_path / "labels.json").exists()


def more_sources() -> set[str]:
    return {package.package for package in (CITIES, NOTO, *CLIPS)}


def test_a_clip_keeps_its_motion(root: Path) -> None:
    """One cut for all frames: with one each, what moves would stand still."""
    entry, query = of_task(root, "queries", "anim-group")[0]
    assert query["text"] == ""
    assert sorted(entry.media) == [f"q0.{n:03d}.webp" for n in range(NUM_FRAMES)]
    from mmemb.storage.shard_index import ShardIndex

    members = ShardIndex.open(root / "queries").read(entry)
    centres = []
    for name in sorted(entry.media):
        pixels = np.asarray(Image.open(io.BytesIO(members[name])).convert("RGB"), dtype=int)
        assert pixels.shape == (SIZE, SIZE, 3)
        _, columns = np.nonzero(np.abs(pixels - 128).max(2) > 24)
        centres.append(columns.mean())
    assert all(b - a > SIZE / 20 for a, b in zip(centres, centres[1:], strict=False))


def test_clips_are_read_as_clips(root: Path) -> None:
    data = EvaluationDataModule(str(root), 500, splits=["test"])
    candidates, queries = data.test_dataloader()
    shown = [c for batch in candidates for c in batch.candidates.candidates if c.gallery == "clips"]
    assert shown
    assert all(c.side.modalities == {"video"} for c in shown)
    asked = [q for batch in queries for q in batch.queries.queries if q.task == "anim-t2v"]
    assert {name for q in asked for name in q.relevance} <= {c.name for c in shown}


def test_clips_without_motion_are_none(root: Path) -> None:
    """The second package of the test holds stills only."""
    clips = [c for _, c in samples(root, "candidates") if c["gallery"] == "clips"]
    assert 0 < len(clips) <= 20


def test_cities_are_the_largest_that_are_no_capital(root: Path) -> None:
    countries = json.loads((root / "facts.json").read_text())["countries"]
    assert countries["ah"]["cities"] == ["Town 3 of ah", "Town 2 of ah"]
    rows = [
        *of_task(root, "queries", "flag-city-t2i"),
        *of_task(root, "pairs/questions", "flag-city-t2i"),
    ]
    texts = [data["text"] for _, data in rows]
    assert any(text.endswith("the city of Town 3 of ah lies") for text in texts)
    assert not [text for text in texts if "Ville 7 " in text]


def test_a_capital_under_another_spelling_is_no_city() -> None:
    tables = {
        "countries.min.json": {"XA": {
            "name": "Land", "native": "L", "phone": [1], "continent": "EU",
            "capital": "Ébert", "currency": [], "languages": [],
        }},
        "currencies.all.min.json": {}, "languages.all.min.json": {},
        "minimal/countries.2to3.min.json": {"XA": "XAA"}, "continents.min.json": {"EU": "E"},
    }  # fmt: skip
    countries = read_countries({name: json.dumps(t).encode() for name, t in tables.items()})
    rows = [("Capital City", ["ebert"], 9), ("Small", [], 1), ("Large", [], 5), ("Mid", [], 3)]
    cities = {
        n: {"name": name, "alternatenames": also, "countrycode": "XA", "population": size}
        for n, (name, also, size) in enumerate(rows)
    }
    (country,) = with_cities(countries, json.dumps(cities).encode())
    assert country.cities == ("Large", "Mid")


def test_labels_are_what_training_calls_pictures_by(root: Path) -> None:
    labels = json.loads((root / "labels.json").read_text())
    trained = {(p["text"], p["instruction"]) for _, p in samples(root, "pairs/plain")}
    assert {(row["text"], row["instruction"]) for row in labels} <= trained
    texts = [row["text"] for row in labels]
    assert len(set(texts)) == len(texts)
    assert sum(text.startswith("the flag of Land") for text in texts) == 40
    concepts = {p["concept"] for _, p in samples(root, "pairs/plain") if p["task"] == "emoji-t2i"}
    assert sum(not text.startswith("the flag") for text in texts) >= len(concepts)


def test_queries_in_the_third_style_have_their_answer_in_the_gallery(root: Path) -> None:
    names = {c["name"] for _, c in samples(root, "candidates") if c["gallery"] == "emoji"}
    asked = [q for _, q in of_task(root, "queries", "emoji-noto")]
    assert asked
    assert all(set(q["relevance"]) <= names for q in asked)


@pytest.mark.slow
def test_a_missing_source_removes_its_tasks_only(archives: Archives, tmp_path: Path) -> None:
    def lost(*absent: str) -> set[str]:
        kept = {name: path for name, path in archives.items() if name not in absent}
        counts = pocket.build_data(tmp_path, kept, "full", tell=lambda line: None)["counts"]
        return {task.name for task in TASKS} - {name for name, row in counts.items() if row["test"]}

    assert lost() == set()
    assert lost(CITIES.package) == {"flag-city-t2i"}
    assert lost(NOTO.package) == {"emoji-noto"}
    assert lost(CLIPS[0].package) == {"anim-group", "anim-t2v"}
