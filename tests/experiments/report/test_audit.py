"""The audit: its rows are the sidecars', its figures are right, and its page is safe to open."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from datamodules.samples import rows_of
from experiments.report.__main__ import main
from experiments.report.audit.build import NAMES
from experiments.report.audit.figures import audit_figures, by_difficulty, by_fit, draft_group
from experiments.report.audit.page import COLUMNS
from experiments.report.audit.rows import AuditRow, read_audit, train_row
from experiments.report.data.reasoned import read_pair
from mmemb.records.rationales import Rationale, ScoredRationale
from mmemb.storage.shard_index import ShardIndex
from tests.fixtures.reports import (
    PageParts,
    check_self_contained,
    embedded_rows,
    rewrite,
    write_sidecars,
)
from tests.fixtures.tiny_experiment import Experiment
from tests.fixtures.tiny_sidecars import write_tiny_rationales


def audit(root: Path, experiment: Path) -> tuple[PageParts, dict[str, Any]]:
    """Runs the command and returns the page and the data."""
    main(["audit", str(experiment), "--data-root", str(root)])
    assert all((experiment / name).is_symlink() for name in NAMES)
    data = json.loads((experiment / "audit.json").read_text())
    return PageParts((experiment / "audit.html").read_bytes()), data


def test_an_audit_of_a_real_experiment(clip_experiment: Experiment) -> None:
    parts, data = audit(clip_experiment.root, clip_experiment.folder)
    check_self_contained(parts)
    train = [row for row in data["rows"] if row["split"] == "train"]
    test = [row for row in data["rows"] if row["split"] == "test"]
    assert len(train) + len(test) == len(data["rows"])
    assert sum(row["count"] for row in train) == 32
    assert data["all_drafts"]["draws"] == 32
    kept = sum(row["kept"] for row in train) / len(train)
    assert data["all_drafts"]["kept"] == pytest.approx(kept)
    assert all(row["names_target"] and row["weight"] is not None for row in train)
    assert all(row["rank_before"] >= 1 and row["top_after"] for row in test)
    assert set(data["swap_test"]) == {"logp_own", "logp_placebo", "logp_none"}
    assert "own less placebo" in parts.text
    assert len(embedded_rows(parts)) == len(data["rows"])


@pytest.fixture(scope="module")
def sidecars(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_sidecars(tmp_path_factory.mktemp("audit"))


def test_rows_are_what_the_sidecars_say(sidecars: tuple[Path, Path]) -> None:
    rows = read_audit(sidecars[1], sidecars[0])
    train = [row for row in rows if row.kept is not None]
    assert len(train) == 16 * 3, "every draft of every train pair, kept or not"
    first = train[0]
    assert (first.split, first.task, first.writer) == ("train", "flag-capital-t2i", "table")
    assert (first.gain, first.raw, first.direct) == (1.0, -1.0, -2.0)
    assert (first.kept, first.names_target, first.weight) == (True, True, 1.0)
    assert (first.margin, first.rank_before) == (None, None), "what was not computed is blank"
    test = [row for row in rows if row.rank_before is not None]
    assert len(test) == 6
    assert {(row.kept, row.weight, row.fitted) for row in test} == {(None, None, False)}


def test_a_row_shows_the_users_id(sidecars: tuple[Path, Path]) -> None:
    row = rows_of(ShardIndex.open(sidecars[0] / "pairs/plain"))[0]
    own = replace(row, entry=replace(row.entry, meta={"id": "https://a.org/b c.jpg"}))
    draft = ScoredRationale(
        Rationale("red", "table", "", "", "", "", seed=0, num_tokens=1, provenance="unknown")
    )
    keys = [train_row(each, read_pair(row), draft).key for each in (row, own)]
    assert keys == [row.entry.key, "https://a.org/b c.jpg"]


def test_a_page_without_what_it_cannot_know_says_so(sidecars: tuple[Path, Path]) -> None:
    parts, data = audit(*sidecars)
    assert "Cannot be shown: there is no selection-test/summary.json" in parts.text
    assert "Cannot be computed from these sidecars" in parts.text
    assert data["fit"] == []
    shown = json.loads(parts.scripts[0])["shown"]
    assert [label for label, picture in shown if not picture] == []
    names = {name for row in embedded_rows(parts) for name in row}
    assert {column.name for column in COLUMNS} <= names


@pytest.mark.parametrize("missing", ["rationales", "selected", "depth_values"])
def test_a_missing_sidecar_is_one_clear_error(
    sidecars: tuple[Path, Path], tmp_path: Path, missing: str
) -> None:
    for name in {"rationales", "selected", "depth_values"} - {missing}:
        (tmp_path / name).symlink_to(sidecars[1] / name)
    with pytest.raises(SystemExit) as raised:
        main(["audit", str(tmp_path), "--data-root", str(sidecars[0])])
    said = str(raised.value)
    assert said.startswith(f"error: {tmp_path / missing} is missing or not finished")
    assert f"stage `{missing}`" in said
    assert "\n" not in said
    assert not list(tmp_path.glob("*audit*"))


def test_no_experiment_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="error: .*nothing is no experiment"):
        main(["audit", str(tmp_path / "nothing")])


def test_broken_scores_are_one_clear_error(sidecars: tuple[Path, Path], tmp_path: Path) -> None:
    root, runs = sidecars
    for name in ("rationales", "depth_values"):
        (tmp_path / name).symlink_to(runs / name)
    selected = write_tiny_rationales(root, tmp_path / "selected", scored=True)
    rewrite(selected, lambda _, rows: [row | {"scores": {"gain": "x"}} for row in rows])
    with pytest.raises(SystemExit, match=r"at `\$\[0\]\.scores\['gain'\]`.*selected again"):
        main(["audit", str(tmp_path), "--data-root", str(root)])


# ---- figures of made-up rows


def row(**changes: Any) -> AuditRow:
    known: dict[str, Any] = dict.fromkeys(
        ("split", "task", "key", "concept", "gallery", "query", "thought", "answer", "target"), "x"
    )
    known |= {"writer": "w", "depth": "full", "count": 1, "tokens": 9, "log_probability": None}
    known |= {"names_target": False, "direct": -1.0, "gain": 0.0}
    return AuditRow(**(known | changes))


def test_rates_of_drafts() -> None:
    rows = [
        row(kept=True, names_target=True, positive=1.0, margin=0.5, gain=1.0, count=3),
        row(kept=True, names_target=False, positive=1.0, margin=-0.5, gain=0.5, concept="y"),
        row(kept=False, names_target=True, positive=-1.0, margin=-0.5, gain=-0.5),
        row(kept=False, names_target=None, gain=None, direct=None),
    ]
    found = draft_group("all", rows)
    assert (found.drafts, found.draws, found.kept) == (4, 6, 0.5)
    assert (found.names_target, found.names_target_kept) == (0.5, 0.5)
    assert found.false_helpful == pytest.approx(1 / 3), "of those that were scored"
    assert found.false_helpful_kept == 0.5
    assert found.gain is not None
    assert found.gain.mean == pytest.approx(1 / 3)
    nothing = draft_group("none", [row(kept=False, gain=None)])
    assert (nothing.names_target_kept, nothing.false_helpful, nothing.gain) == (None, None, None)


def test_gain_by_difficulty_in_thirds() -> None:
    rows = [row(direct=-float(n), gain=float(n), rank_before=n, rank_after=1) for n in range(1, 8)]
    found = by_difficulty([*rows, row(direct=None, gain=None)])
    assert [(g.name, g.rows, g.direct) for g in found] == [
        ("hardest", 3, -6), ("middle", 2, -3.5), ("easiest", 2, -1.5),
    ]  # fmt: skip
    assert [g.gain.mean for g in found] == [6, 3.5, 1.5]
    assert [(g.first_before, g.first_after) for g in found] == [(0, 1), (0, 1), (0.5, 1)]
    assert [g.name for g in by_difficulty([row()])] == ["hardest"]
    assert by_difficulty([]) == ()


def test_fitted_compares_with_unfitted_within_a_task() -> None:
    rows = [
        row(task="mixed", fitted=True, gain=-1.0),
        row(task="mixed", fitted=False, gain=1.0),
        row(task="names", fitted=True, gain=5.0),
    ]
    found = by_fit(rows)
    assert [(g.name, g.gain.mean) for g in found] == [
        ("mixed, fitted", -1), ("mixed, not fitted", 1),
    ]  # fmt: skip
    assert by_fit(rows[1:]) == by_fit([row()]) == ()


def test_no_draft_is_one_clear_error() -> None:
    with pytest.raises(ValueError, match="no train pair has a draft"):
        audit_figures([row(rank_before=1.0, rank_after=1.0)], {})


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Chromium")
def test_the_list_works_in_a_browser(sidecars: tuple[Path, Path], tmp_path: Path) -> None:
    audit(*sidecars)
    page = (sidecars[1] / "audit.html").resolve()
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    flags += [f"--user-data-dir={tmp_path}", "--virtual-time-budget=5000", "--dump-dom"]
    command = ["chromium", *flags, f"file://{page}"]
    done = subprocess.run(command, capture_output=True, check=True, timeout=120)
    parts = PageParts(done.stdout)
    assert "48 of 48 rows shown, 54 in all" in parts.text, "it opens with the train part"
    assert "rank before" not in parts.text.split("What the columns mean")[0].split("The list")[1]
