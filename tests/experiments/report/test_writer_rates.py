"""The report tells for each writer of a pool what was kept of it, and how often it was right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from experiments.report.data.selection import selection_figures
from experiments.report.pages.tables import writers_table
from mmemb.records.rationales import Rationale, ScoredRationale, scored_to_json
from mmemb.storage.shard_writer import Sample, encode_members, finish_manifest, write_shard

Said = tuple[str, int, bool, bool]
"""Writer, count, whether it names the target, whether it was kept."""


def write_selected(folder: Path, rows: Mapping[str, Sequence[Said]]) -> Path:
    samples = []
    for number, (concept, said) in enumerate(rows.items()):
        pool = [
            scored_to_json(
                ScoredRationale(
                    Rationale("", writer, "m", "r", "p", "d", 0, 1, count=count),
                    {"gain": 0.0},
                    names_target=right,
                    kept=kept,
                )
            )
            for writer, count, right, kept in said
        ]
        meta = {"concept": concept, "task": "t"}
        samples.append(Sample(f"r{number}", encode_members({"json": pool}), meta))
    write_shard(folder / "selected", "a-000000.tar", samples)
    finish_manifest(folder / "selected", "", ["a-000000.tar"])
    return folder


def test_rates_are_counted_by_writer_and_draw(tmp_path: Path) -> None:
    rows = {
        "x": [("small", 3, False, False), ("small", 1, True, True), ("large", 2, True, True)],
        "y": [("large", 2, True, False), ("idle", 1, False, False), ("large", 1, False, True)],
    }
    found = selection_figures(write_selected(tmp_path, rows), num_resamples=20)
    assert found is not None
    assert found["writers"] == {
        "idle": {"drawn": 1, "right": 0, "kept": 0, "right_kept": 0},
        "large": {"drawn": 5, "right": 4, "kept": 3, "right_kept": 2},
        "small": {"drawn": 4, "right": 1, "kept": 1, "right_kept": 1},
    }
    assert sum(row["drawn"] for row in found["writers"].values()) == found["drafts"]
    table = writers_table(found)
    assert table is not None
    assert table.headings == ("writer", "drawn", "name the target", "kept", "kept and name it")
    assert table.rows == [
        ["idle", "1", "0 (0.0 %)", "0 (0.0 %)", "0"],
        ["large", "5", "4 (80.0 %)", "3 (60.0 %)", "2 (66.7 %)"],
        ["small", "4", "1 (25.0 %)", "1 (25.0 %)", "1 (100.0 %)"],
    ]


@pytest.mark.parametrize("selection", [None, {}, {"writers": {"one": {}}}])
def test_one_writer_needs_no_table(selection: Mapping[str, object] | None) -> None:
    assert writers_table(selection) is None
