"""A report of own data: two tests alone, of pictures, clips, several pictures and texts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from datamodules.prepare.__main__ import main as prepare
from experiments.report.__main__ import main
from experiments.report.build import show_current
from experiments.report.data.ranked_tests import missing_tests
from experiments.report.pages.found import chosen_by_hash
from experiments.runs.recorded_data import data_root_of, pair_folders
from mmemb.records.ranked_queries import RankedQuery
from tests.fixtures.own_table import Row, flag_rows, write_csv, write_media
from tests.fixtures.reports import PageParts, check_self_contained
from tests.fixtures.tiny_experiment import CLIP_TINY, CONFIGS, run, settings_kept

TEXT = "a long text about a flag. " * 20


def rows() -> list[Row]:
    """Questions about flags, and a task whose queries are a clip, two pictures, or both sides."""
    queries = ["clip.mp4", "flags/01.webp|flags/02.webp", "flags/03.webp"]
    mixed = [
        {"id": f"mixed-{n}", "task": "mixed", "split": "test", "query_media": media,
         "target_text": f"{n} {TEXT}"}
        for n, media in enumerate(queries)
    ]  # fmt: skip
    return flag_rows() + mixed


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Data root and experiment."""
    folder = tmp_path_factory.mktemp("own")
    media, table = write_media(folder / "media"), write_csv(folder / "t.csv", rows())
    command = ["folder", "--table", str(table), "--media", str(media), "--workers", "1"]
    assert prepare([*command, "--out", str(folder / "data")]) == 0

    test = ["test", "--config", str(CONFIGS / "own/test.yaml"), "--config", str(CLIP_TINY)]
    test += ["--data_root", str(folder / "data"), "--runs", str(folder / "runs")]
    test += ["--needs.memory_gib", "0.1"]
    run([*test, "--name", "untrained-test"])
    run([*test, "--seed_everything", "1"])  # other weights, as after a training
    return folder / "data", folder / "runs/own"


@pytest.fixture(scope="module")
def built(own: tuple[Path, Path]) -> dict[str, Any]:
    main(["build", str(own[1])])
    return json.loads((own[1] / "report.json").read_text())


def test_two_tests_alone_give_the_first_table(
    own: tuple[Path, Path], built: dict[str, Any]
) -> None:
    first = built["first"]
    assert list(first["rows"]) == ["backbone as it came", "trained"]
    assert (first["queries"], list(first["tasks"])) == (9, ["flags", "mixed"])
    for name, row in zip(("untrained", "trained"), first["rows"].values(), strict=True):
        summary = json.loads((own[1] / f"{name}-test/summary.json").read_text())["metrics"]
        assert row["recall@5"]["mean"] == pytest.approx(summary["test/recall@5"], abs=1e-6)
        assert first["chance"]["recall@5"] == pytest.approx(summary["test/chance@5"], abs=1e-6)

    difference = first["rows"]["trained"]["minus_first"]
    means = [row["recall@1"]["mean"] for row in first["rows"].values()]
    assert difference["mean"] == pytest.approx(means[1] - means[0])
    assert list(built["commands"]) == ["gated"]
    assert built["missing"]["stages"][0] == "rationales"
    assert built["data_root"] == str(own[0])


def test_the_page_shows_sides_of_every_kind(own: tuple[Path, Path], built: dict[str, Any]) -> None:
    parts = PageParts((own[1] / "report.html").read_bytes())
    check_self_contained(parts)
    for words in ("candidates in random order", "Missed: ", "clip of ", "2 pictures", "Not shown"):
        assert words in parts.text
    assert "a long text about a flag" in parts.text
    assert TEXT.strip() not in parts.text, "a document is shown by its beginning"
    assert "gated" in (own[1] / "report.md").read_text()


def test_a_report_of_tests_alone_is_made_again_after_another_test(
    own: tuple[Path, Path], built: dict[str, Any], tmp_path: Path
) -> None:
    root, experiment = own
    assert show_current(experiment, root)

    # The newest test is now another one, whose ranks differ.
    link = experiment / "trained-test"
    before = link.readlink()
    link.unlink()
    link.symlink_to((experiment / "untrained-test").resolve())
    try:
        assert not show_current(experiment, root)
    finally:
        link.unlink()
        link.symlink_to(before)
    assert show_current(experiment, root)


def test_a_test_of_other_data_is_left_out_and_named(
    own: tuple[Path, Path], built: dict[str, Any], tmp_path: Path
) -> None:
    root, experiment = own
    for name in ("untrained-test", "trained-test"):
        shutil.copytree((experiment / name).resolve(), tmp_path / f"{name}-run")
        (tmp_path / name).symlink_to(f"{name}-run")
    ranks = tmp_path / "untrained-test/ranks.json"
    data = json.loads(ranks.read_text())
    ranks.write_text(json.dumps({"queries": data["queries"][1:]}))

    main(["build", str(tmp_path)])
    text = (tmp_path / "report.md").read_text()
    assert 'The row "backbone as it came" is left out' in text
    assert "| trained " in text


def test_the_commands_of_missing_rows_are_those_of_the_experiment(
    own: tuple[Path, Path], built: dict[str, Any]
) -> None:
    commands = missing_tests(own[1], own[0], {})
    shared = f"--data_root {own[0]} --runs {own[1].parent}"
    test = "python -m experiments.run test --config own/test"
    assert commands == {
        "backbone as it came": f"{test} --name untrained-test --encoder clip_tiny {shared}",
        "trained": f"{test} {shared}",
        "gated": f"python -m experiments.pipeline own/pipeline --encoder clip_tiny --writer model "
        f"{shared}",
    }


def test_data_are_those_that_the_runs_recorded(own: tuple[Path, Path], tmp_path: Path) -> None:
    with settings_kept():
        assert data_root_of(own[1], None) == own[0]
    assert data_root_of(own[1], tmp_path) == tmp_path, "what the user names counts"
    assert pair_folders(own[1], own[0]) == [own[0] / "pairs/plain"]

    with pytest.raises(FileNotFoundError, match="no finished run that names its data"):
        data_root_of(tmp_path, None)
    for name, root in (("one", own[0]), ("two", tmp_path)):
        (tmp_path / f"{name}-run").mkdir()
        (tmp_path / f"{name}-run/config.yaml").write_text(f"model: {{}}\ndata_root: {root}\n")
        (tmp_path / name).symlink_to(f"{name}-run")
    with pytest.raises(ValueError, match=r"several data roots \(.* of one; .* of two\): name one"):
        data_root_of(tmp_path, None)
    (tmp_path / "one").unlink()
    shutil.rmtree(tmp_path / "two-run")
    (tmp_path / "two-run").mkdir()
    (tmp_path / "two-run/config.yaml").write_text("model: {}\ndata_root: gone\n")
    with pytest.raises(FileNotFoundError, match=r"gone, which .* is no folder here: name"):
        data_root_of(tmp_path, None)


def test_examples_take_turns_among_tasks() -> None:
    def ranked(key: int, task: str) -> RankedQuery:
        return RankedQuery(
            key=f"{task}{key}", task=task, concept="c", gallery="g", candidates=2, right=("x",),
            rank=1.0, metrics={},
        )  # fmt: skip

    queries = [ranked(n, "a") for n in range(50)] + [ranked(n, "b") for n in range(2)]
    chosen = chosen_by_hash(queries, 5)
    assert sorted(query.task for query in chosen) == ["a", "a", "a", "b", "b"]
    assert chosen == chosen_by_hash(queries[::-1], 5)
    assert [query.key for query in chosen if query.task == "a"] != ["a0", "a1", "a2"]
