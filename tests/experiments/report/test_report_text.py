"""No text of a shard becomes markup or code, in either page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.report.audit.build import audit
from experiments.report.data.reasoned import read_reasoned
from experiments.report.pages.examples import read_examples
from experiments.report.pages.report_page import report_html
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
    examples = read_examples(read_reasoned(runs, root), root)
    parts = PageParts(report_html(report_figures(HOSTILE), examples, b"png"))
    check_self_contained(parts)
    assert parts.scripts == []
    assert len(parts.of_tag("article")) > 0
    assert len(parts.of_tag("b")) == len(parts.of_tag("article")), "the answers', no other"
    assert HOSTILE in parts.text
    assert {attributes.get("alt") for attributes in parts.of_tag("img")} >= {HOSTILE}


def test_audit(hostile: tuple[Path, Path]) -> None:
    root, runs = hostile
    audit(runs, str(root))
    parts = PageParts((runs / "audit.html").read_bytes())
    check_self_contained(parts)
    assert len(parts.scripts) == 2, "the data and the page's own script"
    row = embedded_rows(parts)[0]
    assert row["query"] == row["thought"] == row["answer"] == row["writer"] == HOSTILE
    assert json.loads((runs / "audit.json").read_text())["rows"][0]["query"] == HOSTILE
