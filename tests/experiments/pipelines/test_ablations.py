"""Ablations: cells are read, chosen, run once, and judged against what was expected."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from datamodules.sidecars import RationaleTable
from experiments.pipelines.ablations import (
    Cell,
    Comparison,
    choose_again,
    draw_counts,
    read_ablations,
    run_cells,
    write_cell_sidecar,
    write_report,
)
from experiments.report.policies.ablations import CellTable, cell_figures, compare, page, picture
from mmemb.rationales import merge_drafts
from mmemb.records.rationales import Rationale, ScoredRationale
from mmemb.storage.shard_index import ShardIndex
from mmemb.storage.trained_facts import inherited_facts
from tests.fixtures.tiny_experiment import POCKET, Experiment

FILE = POCKET / "ablations.yaml"
BLOCK = yaml.safe_load(FILE.read_text())["ablations"]


def test_the_file_names_every_row_that_was_asked_for() -> None:
    found = read_ablations(BLOCK, FILE)
    rules = {(c.contrast, c.min_placebo_rank, c.keep_share) for c in found.cells.values()}
    chosen = [("raw", 0), ("positive", 0), ("gain", 0), ("gain", 0.5), ("margin", 0)]
    for contrast, rank in chosen:
        assert {(contrast, rank, 0.3), (contrast, rank, 0.5)} <= rules
    assert {cell.drafts for cell in found.cells.values()} == {None, 1, 2, 4}
    assert {cell.unselected_fraction for cell in found.cells.values()} == {0.0, 0.25, 0.5}
    assert any(cell.hard for cell in found.cells.values())
    assert any(cell.direct_weight == 0 for cell in found.cells.values())
    assert {"always", "never", "averaged"} == {row.path for row in found.comparisons}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seeds": [0, 0]}, "each once"),
        ({"seeds": []}, "at least one"),
        ({"cells": {"a": {"contrast": "best"}}}, "contrast 'best'"),
        ({"cells": {"a": {"rule": "gain"}}}, "`rule` of a cell is `contrast` now"),
        ({"cells": {"a": {"keepshare": 1}}}, "keepshare"),
        ({"comparisons": [{"left": "gain-30", "right": "x", "expected": "higher"}]}, "'x'"),
        ({"fit": None, "extra": 1}, "extra"),
        ({"cells": {"../up": {}}, "comparisons": []}, r"a cell is '\.\./up': expected the name of"),
    ],
)
def test_a_mistake_names_file_and_key(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_ablations(BLOCK | change, FILE)


def link_selection(experiment: Experiment, folder: Path) -> None:
    for name in ("selected", "selection", "judge-scores"):
        (folder / name).symlink_to(experiment.folder / name)


def test_a_cell_has_a_sidecar_of_its_own(clip_experiment: Experiment, tmp_path: Path) -> None:
    link_selection(clip_experiment, tmp_path)
    source = ShardIndex.open(clip_experiment.root / "pairs/questions")
    kept = {}
    for name, cell in {
        "few": Cell(keep_share=0.1),
        "all": Cell(contrast="none", keep_share=1.0),
    }.items():
        folder = write_cell_sidecar(tmp_path, cell)
        before = (folder / "manifest.json").stat().st_mtime_ns
        assert write_cell_sidecar(tmp_path, replace(cell)) == folder
        assert (folder / "manifest.json").stat().st_mtime_ns == before, "written once"
        table = RationaleTable(folder, [source])  # joins with its pairs
        assert inherited_facts(str(folder)) == inherited_facts(str(tmp_path / "selected"))
        rows = [table._index.read(e, {"json"})["json"] for e in table._index.entries]
        kept[name] = sum(row.count(b'"kept": true') for row in rows)
    assert 0 < kept["few"] < kept["all"]


def test_every_cell_runs_with_its_own_settings(clip_experiment: Experiment, tmp_path: Path) -> None:
    link_selection(clip_experiment, tmp_path)
    comparison = Comparison(
        left="b", right="b", expected="higher", path="averaged", against="always"
    )
    small = replace(
        read_ablations(BLOCK, FILE),
        cells={"a": Cell(), "b": Cell(hard=True)},
        comparisons=(comparison,),
        seeds=(0, 1),
    )
    ran: list[tuple[str, Sequence[str]]] = []
    run_cells(small, tmp_path, ["--x"], lambda kind, path, arguments: ran.append((kind, arguments)))
    assert [kind for kind, _ in ran] == ["fit", "predict"] * 4
    assert [arguments[1] for _, arguments in ran[::2]] == [
        "a-seed0", "b-seed0", "a-seed1", "b-seed1"
    ]  # fmt: skip
    fits = [" ".join(arguments) for _, arguments in ran[::2]]
    assert ["--data.sample_by_weight true" in line for line in fits] == [True, False, True, False]
    assert all(line.endswith("--x") for line in fits)
    measured = ["--model.num_draws" in arguments for _, arguments in ran[1::2]]
    assert measured == [True, False, True, False], "all drafts are read where they are averaged"


def test_a_smaller_pool_is_what_fewer_draws_would_have_given() -> None:
    text = "<think>It is {0}.</think><answer>{0}</answer>"
    drawn = [
        Rationale(text.format(answer), "w", "m", "1", "p", "d", seed, num_tokens=5)
        for seed, answer in enumerate("aabacbba")
    ]
    whole, _ = merge_drafts(drawn)
    pool = tuple(map(ScoredRationale, whole))
    for num in (1, 2, 4, 8):
        expected, _ = merge_drafts(drawn[:num])
        counted = zip(whole, draw_counts(pool, range(num)), strict=True)
        assert [(r.answer, count) for r, count in counted if count] == [
            (r.answer, r.count) for r in expected
        ]
    assert draw_counts(pool, None) == draw_counts(pool, range(8))


def test_the_selectors_own_rule_chooses_what_the_selector_chose(
    clip_experiment: Experiment, tmp_path: Path
) -> None:
    """The keep rule of `pocket/selection.yaml`, over the stored scores."""
    link_selection(clip_experiment, tmp_path)
    source = ShardIndex.open(tmp_path / "selected")
    chosen = choose_again(source, tmp_path, Cell(keep_share=0.27, min_placebo_rank=1.0))
    for entry in source.entries:
        selected = json.loads(source.read(entry)["json"])
        again = chosen[entry.key]
        assert [row["kept"] for row in again] == [row["kept"] for row in selected]
        assert [row["weight"] for row in again] == pytest.approx(
            [row["weight"] for row in selected], abs=1e-4
        )


def cell(shift: float) -> CellTable:
    random = np.random.default_rng(0)
    base = random.random((2, 200))
    value = {"never": base, "always": base + shift, "averaged": base + 2 * shift}
    tasks = tuple("xy"[n % 2] for n in range(200))
    keys = tuple(map(str, range(200)))
    return CellTable(value, keys, tasks, tuple(str(n // 4) for n in range(200)))


def test_a_difference_is_judged_by_its_interval() -> None:
    cells = {"good": cell(0.1), "same": cell(0.0)}
    row = Comparison(left="good", right="same", expected="higher")
    found = compare(row, cells)
    assert found["mean"] == pytest.approx(0.1)
    assert found["verdict"] == "confirmed"
    assert compare(replace(row, expected="lower"), cells)["verdict"] == "opposite"
    assert compare(replace(row, left="same", expected="equal"), cells)["verdict"] == "confirmed"
    averaged = replace(row, right="good", path="averaged", against="always")
    assert compare(averaged, cells)["mean"] == pytest.approx(0.1)
    assert cell_figures(cells["good"])["always_minus_never"]["mean"] == pytest.approx(0.1)


def test_cells_of_other_data_are_not_compared() -> None:
    """Equal keys are not enough: a table may have been edited between two cells."""
    cells = {"a": cell(0.1), "b": replace(cell(0.1), made_from=frozenset({"other"}))}
    with pytest.raises(ValueError, match="measured on different queries"):
        compare(Comparison(left="a", right="b", expected="equal"), cells)


def test_the_table_reads_as_text() -> None:
    cells = {"good": cell(0.1), "same": cell(0.0)}
    row = Comparison(left="good", right="same", expected="higher")
    found = {
        "cells": {name: cell_figures(table) for name, table in cells.items()},
        "comparisons": {"good minus same": compare(row, cells)},
    }
    text = page(found, (0, 1))
    assert re.search(r"\| good minus same +\| higher +\| 10\.0", text)
    assert "confirmed" in text
    image = Image.open(io.BytesIO(picture(found)))
    assert image.format == "PNG"
    assert image.width > 900


def test_the_report_lies_in_a_run_and_is_linked(tmp_path: Path) -> None:
    write_report(tmp_path, "# words", {"cells": {}}, b"png")
    (run,) = tmp_path.glob("*-report-*")
    for name in ("report.md", "report.json", "report.png"):
        assert (tmp_path / name).resolve() == run / name
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["cells"] == {}
    assert found["versions"]["torch"]
