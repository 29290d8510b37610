"""No text of a shard becomes markup or code, in either page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.report.audit.build import audit
from experiments.report.data.pictures import CandidatePictures
from experiments.report.data.ranked_tests import TRAINED, read_tests
from experiments.report.data.reasoned import read_reasoned
from experiments.report.pages.examples import read_examples
from experiments.report.pages.found import found_examples
from experiments.report.pages.report_page import PageExamples, report_html
from tests.fixtures.reports import (
    HOSTILE,
    PageParts,
    check_self_contained,
    embedded_rows,
    poison,
    report_figures,
    rewrite,
    write_sidecars,
)
from tests.fixtures.tiny_sidecars import record_origins


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root, runs = write_sidecars(tmp_path_factory.mktemp("hostile"))
    for folder in (root / "queries", root / "pairs/questions", root / "candidates"):
        rewrite(folder, poison)
    for name in ("rationales", "selected", "depth_values"):
        rewrite(runs / name, poison)
    for name in ("rationales", "selected"):
        record_origins(runs / name, root / "queries", root / "pairs/questions")
    record_origins(runs / "depth_values", root / "queries", runs / "rationales")
    return root, runs


def test_report(hostile: tuple[Path, Path]) -> None:
    root, runs = hostile
    pictures = CandidatePictures.open(root)
    test = read_tests(runs, root)[TRAINED]
    examples = PageExamples(
        found_examples(HOSTILE, test, root, pictures),
        read_examples(read_reasoned(runs, root), pictures),
    )
    parts = PageParts(report_html(report_figures(HOSTILE), examples, b"png"))
    check_self_contained(parts)
    assert parts.scripts == []
    assert len(parts.of_tag("article")) > 0
    changed = [a for a in parts.of_tag("p") if a.get("class") == "answer"]
    assert len(parts.of_tag("b")) == len(changed) > 0, "the answers', no other"
    assert HOSTILE in parts.text
    assert {attributes.get("alt") for attributes in parts.of_tag("img")} >= {HOSTILE}


def test_audit(hostile: tuple[Path, Path]) -> None:
    root, runs = hostile
    audit(runs, root)
    parts = PageParts((runs / "audit.html").read_bytes())
    check_self_contained(parts)
    assert len(parts.scripts) == 2, "the data and the page's own script"
    row = embedded_rows(parts)[0]
    assert row["query"] == row["thought"] == row["answer"] == row["writer"] == HOSTILE
    assert json.loads((runs / "audit.json").read_text())["rows"][0]["query"] == HOSTILE
