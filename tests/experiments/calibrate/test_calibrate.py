"""`mmemb calibrate`: shares before and after, the former calibration kept, a run left alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

import mmemb
from experiments.calibrate.__main__ import main
from experiments.calibrate.shares import budget_shares, half_width
from mmemb.gate.saved_settings import read_settings
from mmemb.storage.json_files import write_json
from tests.fixtures.other_traffic import TRAFFIC, calibrated_elsewhere


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibrate")
    calibrated_elsewhere(folder).save_pretrained(folder / "adaptive")
    return folder / "adaptive"


@pytest.fixture
def traffic(tmp_path: Path) -> Path:
    path = tmp_path / "queries.txt"
    path.write_text("\n".join([*TRAFFIC, "", TRAFFIC[0]]) + "\n", encoding="utf-8")
    return path


def call(saved: Path, queries: Path, *more: str) -> None:
    main(["--model", str(saved), "--queries", str(queries), *more])


def test_a_new_folder_keeps_the_budget(
    saved: Path, traffic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in saved.rglob("*") if path.is_file()}
    call(saved, traffic, "--out", str(tmp_path / "out"), "--budget", "0.25")

    said = capsys.readouterr().out
    assert "41 queries of" in said
    assert "41 of them can reason, 40 different ones" in said
    assert "Warning: these are few queries" in said
    row = next(line for line in said.splitlines() if line.startswith("| 0.25 invocation"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert float(cells[3].split()[0]) > 90, "the share at the price of other queries"
    assert float(cells[4]) == 24.4, "10 of 41, the most that the budget allows"
    assert float(cells[5].split()[0]) < 50, "held out"

    # All else is as it was, the former calibration included.
    out = tmp_path / "out"
    kept = json.loads((out / "former_calibrations/1.json").read_text())
    assert kept == json.loads((saved / "adaptive.json").read_text())["calibration"]
    assert {path: path.read_bytes() for path in before} == before
    assert "former_calibrations/1.json" in (out / "README.md").read_text()
    assert str(tmp_path) not in (out / "README.md").read_text(), "a card names no machine's paths"

    embedder = mmemb.load(out)
    assert (
        embedder.encode(TRAFFIC, budget=0.25).depths
        == mmemb.load(out).encode(TRAFFIC, budget=0.25).depths
    )
    assert embedder.calibration == embedder.calibrate([*TRAFFIC, TRAFFIC[0]])


def test_in_place_the_former_calibrations_stay(saved: Path, traffic: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(saved, tmp_path / "adaptive"))
    (place / "README.md").write_text("# mine\n\n## Budgets\n\nold\n\n## Licence\n\nmine\n")
    for _ in range(2):
        call(place, traffic, "--in-place")
    assert len(list((place / "former_calibrations").iterdir())) == 2
    first, second = (json.loads(p.read_text()) for p in sorted(place.glob("former*/*.json")))
    assert first != second
    assert second == json.loads((place / "adaptive.json").read_text())["calibration"]

    page = (place / "README.md").read_text()
    assert page.count("## Budgets") == 1
    assert "old" not in page
    assert "## Licence\n\nmine" in page


def test_a_kill_leaves_one_calibration_in_force(saved: Path, traffic: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(saved, tmp_path / "adaptive"))

    def killed(path: Path, data: Any) -> None:
        if path.name == "adaptive.json":
            raise KeyboardInterrupt
        write_json(path, data)

    patched = patch("mmemb.gate.saved_settings.write_json", killed)
    with patched, pytest.raises(KeyboardInterrupt):
        call(place, traffic, "--in-place")
    assert read_settings(place) == read_settings(saved)
    assert len(list((place / "former_calibrations").iterdir())) == 1

    # The same command repairs what was left.
    call(place, traffic, "--in-place")
    assert len(list((place / "former_calibrations").iterdir())) == 1
    assert read_settings(place) != read_settings(saved)

    with patched, pytest.raises(KeyboardInterrupt):
        call(saved, traffic, "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_places_and_budgets_are_checked_first(saved: Path, traffic: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="is there already"):
        call(saved, traffic, "--out", str(tmp_path))
    with pytest.raises(SystemExit, match="a share from 0 to 1"):
        call(saved, traffic, "--out", str(tmp_path / "out"), "--budget", "2")
    with pytest.raises(SystemExit, match="--unit tokens needs a --budget"):
        call(saved, traffic, "--out", str(tmp_path / "out"), "--unit", "tokens")
    with pytest.raises(SystemExit, match="--written is -1: expected a number of queries"):
        call(saved, traffic, "--out", str(tmp_path / "out"), "--written", "-1")
    with pytest.raises(SystemExit, match="batch_size must be a whole number"):
        call(saved, traffic, "--out", str(tmp_path / "out"), "--batch-size", "0")
    with pytest.raises(SystemExit, match="has no gate, so it has no budgets"):
        call(saved / "backbone", traffic, "--out", str(tmp_path / "out"))

    # The files of a run are recorded, and would count as lost.
    run = tmp_path / "run"
    shutil.copytree(saved, run / "adaptive")
    (run / "fingerprint.json").write_text('{"fingerprint": "f00", "finished": true}')
    with pytest.raises(SystemExit, match="belongs to a finished run"):
        call(run, traffic, "--in-place")


def test_tokens_are_measured_on_written_rationales(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "q.jsonl").write_text('{"text": "the flag of Peru", "instruction": ""}\n' * 8)
    more = ["--written", "8", "--unit", "tokens", "--budget", "1"]
    call(saved, tmp_path / "q.jsonl", "--out", str(tmp_path / "out"), *more)
    assert "1 tokens" in capsys.readouterr().out
    tokens = mmemb.load(tmp_path / "out").encode(["the flag of Peru"], depth="full").tokens_B
    assert mmemb.load(tmp_path / "out").calibration.max_cost("tokens") == float(tokens[0])

    (tmp_path / "unknown.txt").write_text("nobody knows\n")
    with pytest.raises(SystemExit, match="its tokens cannot be measured"):
        call(saved, tmp_path / "unknown.txt", "--out", str(tmp_path / "other"), *more)


def test_a_half_never_chooses_its_own_price(tmp_path: Path) -> None:
    embedder = calibrated_elsewhere(tmp_path)
    scores = embedder.gate_scores(TRAFFIC)
    new = embedder.calibrate(TRAFFIC)
    (share,) = budget_shares(scores, embedder.calibration, new, [0.25], "invocation")
    assert share.share == 0.25
    assert share.held_out is not None
    assert abs(share.held_out.mean - 0.25) < 2 * half_width(len(TRAFFIC))
    assert share.held_out.low is not None, "an interval from 40 different queries"

    (alone,) = budget_shares(scores.of_rows([0]), new, new, [0.25], "invocation")
    assert alone.held_out is None
