"""The pocket data set, built from tiny archives: parts, cuts, leaks, reruns, missing sources."""

from __future__ import annotations

import doctest
import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from datamodules.prepare.pocket import art, countries, emoji, flags, rows, splits
from datamodules.prepare.pocket import build as pocket
from datamodules.prepare.pocket.sources import COUNTRIES, DATA, FLUENT, OPENMOJI
from datamodules.prepare.pocket.tables import render_counts
from datamodules.prepare.pocket.tasks import (
    MIXED_QUESTIONS,
    MIXED_SHARES,
    SPLIT_SHARES,
    TASKS,
    TEXT_QUESTIONS,
)
from mmemb.records.old_names import with_new_fields
from mmemb.storage.shard_index import ShardIndex
from tests.fixtures.paths import REPO
from tests.fixtures.prepare_sources import CODES, NUM_COUNTRIES, TWINS, write_sources

SEEN = {task.name for task in TASKS if task.seen_answer}
REAL = REPO / "data/pocket"


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_sources(tmp_path_factory.mktemp("archives"))


@pytest.fixture(scope="module")
def root(archives: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pocket")
    pocket.build_data(folder, archives, "mini", tell=lambda line: None)
    return folder


def samples(root: Path, *folders: str) -> list[tuple[Any, dict[str, Any]]]:
    found = []
    for folder in folders:
        index = ShardIndex.open(root / folder)
        for entry in index.entries:
            data = json.loads(index.read(entry)["json"])
            found.append((entry, with_new_fields(data)))  # real data may be of an older version
    return found


def pairs(root: Path) -> list[tuple[Any, dict[str, Any]]]:
    return samples(root, "pairs/plain", "pairs/questions")


@pytest.mark.parametrize("size", [1, 7, 20, 59, 250, 251])
def test_cuts_are_exact_and_disjoint(size: int) -> None:
    split = splits.Split.of((f"c{n}" for n in range(size)), "kind")
    counts = Counter(split.split_of.values())
    num_train = counts["train"] + counts["val"]
    for part, share in SPLIT_SHARES.items():
        assert abs((num_train if part == "train" else counts[part]) - share * size) <= 1
    assert counts["val"] == round(0.1 * num_train)
    train = {name for name, part in split.split_of.items() if part == "train"}
    assert set(split.folds) == set(split.mixed) == train
    folds = Counter(split.folds.values())
    assert abs(folds["a"] - folds["b"]) <= 1
    for part, share in MIXED_SHARES.items():
        assert abs(Counter(split.mixed.values())[part] - share * len(train)) <= 1


def test_no_asked_fact_is_trained(root: Path) -> None:
    trained = {data["fact"] for _, data in pairs(root)}
    for _, query in samples(root, "queries"):
        if query["task"] not in SEEN:
            assert query["fact"] not in trained, query


def test_parts_share_no_concept_outside_tasks_that_say_so(root: Path) -> None:
    parts = defaultdict(set)
    for _, query in samples(root, "queries"):
        if query["task"] not in SEEN:
            parts[query["concept"]].add(query["split"])
    assert parts
    assert all(len(found) == 1 for found in parts.values())
    asked = set(parts)
    for _, pair in samples(root, "pairs/questions"):
        assert pair["concept"] not in asked


def test_every_flag_and_name_is_trained(root: Path) -> None:
    named = defaultdict(set)
    for _, pair in samples(root, "pairs/plain"):
        if pair["task"] == "flag-name":
            named[pair["concept"]].add(pair["target_name"].split("-")[1])
    assert named == {f"country:{code}": {"openmoji", "3d"} for code in CODES}


def test_mixed_wordings_are_never_trained_and_half_of_their_answers_are(root: Path) -> None:
    starts = [q.template.split("{}")[0] for q in MIXED_QUESTIONS]
    texts = [data["text"] for _, data in pairs(root)]
    assert not [text for text in texts for start in starts if text.startswith(start)]
    trained = {data["fact"] for _, data in pairs(root)}
    folds: dict[str, list[bool]] = defaultdict(list)
    for _, query in samples(root, "queries"):
        if query["task"].endswith("-mixed"):
            folds[query["split"]].append(query["fact"] in trained)
    assert set(folds) == {"gate", "calibration", "test"}
    assert all(sum(known) * 2 == len(known) for known in folds.values())


def test_evaluated_emoji_were_never_drawn_for_training(root: Path) -> None:
    concepts = {q["concept"] for _, q in samples(root, "queries") if "emoji" in q["concept"]}
    shown = [pair for _, pair in pairs(root) if pair["concept"] in concepts]
    assert concepts
    assert not shown
    trained = {d for entry, _ in pairs(root) for d in entry.media.values()}
    asked = {d for entry, q in samples(root, "queries") for d in entry.media.values()}
    assert not trained & asked  # flag queries show a style that no pair shows


def test_question_wordings_are_those_of_the_tests(root: Path) -> None:
    starts = {q.task: q.template.split("{}")[0] for q in TEXT_QUESTIONS}
    rows = samples(root, "pairs/questions", "queries")
    for _, data in rows:
        if data["task"] in starts:
            assert data["text"].startswith(starts[data["task"]])
    assert set(starts) <= {data["task"] for _, data in rows}


def test_question_pairs_have_halves_and_a_target_in_the_gallery(root: Path) -> None:
    names = {(c["gallery"], c["name"]) for _, c in samples(root, "candidates")}
    folds = defaultdict(set)
    for entry, pair in samples(root, "pairs/questions"):
        folds[pair["concept"]].add(entry.meta["fold"])
        assert (pair["gallery"], pair["target_name"]) in names
        assert pair["target_name"] in pair["positives"]
    assert all(fold in ({"a"}, {"b"}) for fold in folds.values())
    for entry, query in samples(root, "queries"):
        assert all((entry.meta["gallery"], name) in names for name in query["relevance"])


def test_equal_flags_are_right_together(root: Path) -> None:
    asked = [q for _, q in samples(root, "queries") if q["fact"] == f"country:{TWINS[0]}/name"]
    assert [set(q["relevance"]) for q in asked] == [set(TWINS)]


def test_both_drawings_of_a_flag_are_right_in_training(root: Path) -> None:
    pair = next(data for _, data in pairs(root) if data["task"] == "flag-name")
    code = pair["target_name"].split("-")[0]
    assert {f"{code}-openmoji", f"{code}-3d"} <= set(pair["positives"])


def test_clues_of_several_countries_are_not_asked(root: Path) -> None:
    rows = samples(root, "pairs/questions", "queries")
    texts = [data["text"] for _, data in rows]
    assert not [text for text in texts if text.endswith("Same City")]
    assert not [text for text in texts if "language 0 " in text or "unit of account" in text]
    assert not [text for text in texts if "calls itself LÁND" in text]  # a trained name


def test_queries_that_a_text_writer_reads_come_first(root: Path) -> None:
    entries = ShardIndex.open(root / "queries").entries
    pictured = [bool(entry.media) for entry in entries]
    assert pictured == sorted(pictured)
    assert [entry.key for entry in entries] == [f"{n:08d}" for n in range(len(entries))]


def test_a_second_build_gives_the_same_bytes(
    root: Path, archives: dict[str, Path], tmp_path: Path
) -> None:
    pocket.build_data(tmp_path, archives, "mini", tell=lambda line: None)
    files = sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    assert all((root / f).read_bytes() == (tmp_path / f).read_bytes() for f in files)


@pytest.mark.slow
def test_the_fingerprint_is_the_same_in_every_process() -> None:
    """A set among the benchmark's settings would be written in another order each time."""
    program = (
        "from datamodules.prepare.pocket.build import *; print(fingerprint(sources.DATA, 'mini'))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPO,
        env=os.environ | {"PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == pocket.fingerprint(DATA, "mini")


def test_only_a_whole_data_set_of_these_settings_is_ready(
    archives: dict[str, Path], tmp_path: Path
) -> None:
    manifest = pocket.build_data(tmp_path, archives, "mini", tell=lambda line: None)
    mark = pocket.fingerprint(DATA, "mini")
    assert pocket.ready_manifest(tmp_path, mark) == manifest
    assert pocket.ready_manifest(tmp_path, "other") is None
    shard = next((tmp_path / "queries").glob("*.tar"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-600])
    assert pocket.ready_manifest(tmp_path, mark) is None
    pocket.build_data(tmp_path, archives, "mini", tell=lambda line: None)
    assert shard.read_bytes() == whole
    assert pocket.ready_manifest(tmp_path, mark) == manifest


def test_an_interrupted_build_is_not_trusted_and_can_go_on(
    archives: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    mark = pocket.fingerprint(DATA, "mini")
    with monkeypatch.context() as patched:
        patched.setattr(rows.QueryRow, "sample", stop)
        with pytest.raises(KeyboardInterrupt):
            pocket.build_data(tmp_path, archives, "mini", tell=lambda line: None)
    assert pocket.ready_manifest(tmp_path, mark) is None
    pocket.build_data(tmp_path, archives, "mini", tell=lambda line: None)
    assert pocket.ready_manifest(tmp_path, mark)


@pytest.mark.slow
def test_a_missing_source_removes_its_tasks_only(archives: dict[str, Path], tmp_path: Path) -> None:
    def tasks(*absent: str) -> set[str]:
        kept = {name: path for name, path in archives.items() if name not in absent}
        manifest = pocket.build_data(tmp_path, kept, "mini", tell=lambda line: None)
        return {task for task, row in manifest["counts"].items() if row["test"]}

    everything = tasks()
    assert everything == {task.name for task in TASKS}
    assert tasks(OPENMOJI.package) == everything - {"emoji-style"}
    assert tasks(FLUENT.package) == everything - {"emoji-style"}
    assert tasks(COUNTRIES.package) == {t for t in everything if t.startswith("emoji")}
    with pytest.raises(ValueError, match="No task is left"):
        tasks(*archives)


def test_tables_beside_the_shards(root: Path) -> None:
    facts = json.loads((root / "facts.json").read_text())
    assert len(facts["countries"]) == NUM_COUNTRIES
    question = TEXT_QUESTIONS[0].text("City 7")
    assert facts["questions"][question] == CODES[7]
    few_shot = json.loads((root / "few_shot_concepts.json").read_text())
    asked = {q["concept"] for _, q in samples(root, "queries") if q["task"] not in SEEN}
    assert few_shot
    assert not asked & set(few_shot)
    tasks = json.loads((root / "tasks.json").read_text())
    assert [task["name"] for task in tasks] == [task.name for task in TASKS]
    manifest = json.loads((root / "manifest.json").read_text())
    assert "* think, together" in render_counts(manifest["counts"])


@pytest.mark.parametrize("module", [art, countries, emoji, flags, splits])
def test_examples_in_docstrings(module: Any) -> None:
    assert doctest.testmod(module).failed == 0


@pytest.mark.skipif(not (REAL / "manifest.json").is_file(), reason="needs the prepared data")
def test_the_real_data_has_enough_queries_and_no_leak() -> None:
    counts = json.loads((REAL / "manifest.json").read_text())["counts"]
    think = {task.name for task in TASKS if task.think}
    assert sum(row["test"] for task, row in counts.items() if task in think) >= 300
    test_no_asked_fact_is_trained(REAL)
    test_parts_share_no_concept_outside_tasks_that_say_so(REAL)
    test_mixed_wordings_are_never_trained_and_half_of_their_answers_are(REAL)
    test_evaluated_emoji_were_never_drawn_for_training(REAL)
