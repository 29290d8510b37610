"""`report.html`: which queries open it, and what it says about each."""

from __future__ import annotations

import re
from base64 import b64decode
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.report.data.pictures import CandidatePictures, data_url
from experiments.report.data.pictures import _small_url as small_url
from experiments.report.data.reasoned import (
    Depth,
    ReasonedQuery,
    check_covers,
    read_depths,
    read_reasoned,
)
from experiments.report.pages.examples import most_changed, read_examples
from experiments.report.pages.report_page import PageExamples, report_html, report_markdown
from mmemb.media.pictures import read_picture
from mmemb.storage.shard_index import ShardIndex
from tests.fixtures.picture_files import png
from tests.fixtures.reports import (
    PageParts,
    check_self_contained,
    report_figures,
    rewrite,
    write_sidecars,
)
from tests.fixtures.tiny_experiment import Experiment
from tests.fixtures.tiny_sidecars import (
    record_origins,
    write_tiny_depth_values,
    write_tiny_rationales,
)

NOTHING_ELSE: dict[str, Any] = {
    "told_queries": 0, "graded": None, "picking": {}, "flag_name": None, "selection": None,
    "swap_test": {}, "swap_cosines": None, "uncommitted_changes": False, "git_commit": "",
    "gate_study": {"states": {}, "estimators": {}, "within_tasks": {}},
}  # fmt: skip
"""What a report may lack."""


def test_report_html_opens_with_examples_and_holds_what_the_report_says(
    clip_experiment: Experiment,
) -> None:
    link = clip_experiment.folder / "report.html"
    assert link.is_symlink()
    parts = PageParts(link.read_bytes())
    check_self_contained(parts)
    assert parts.scripts == []
    for words in (
        "Reasoning helped most", "Reasoning hurt most", "All tasks with",
        "random at equal cost", "gated minus per-task rule", "flag-name", "torch",
    ):  # fmt: skip
        assert words in parts.text
    assert parts.text.index("Reasoning helped most") < parts.text.index("All tasks with")
    pictures = [attributes["src"] or "" for attributes in parts.of_tag("img")]
    assert pictures[-1].startswith("data:image/png;base64,"), "the figure"
    assert {picture[:16] for picture in pictures[:-1]} <= {"data:image/webp;"}


TESTS_ALONE: dict[str, Any] = {
    "mix": {}, "missing": {"stages": ["gate", "decisions"], "command": "run this"},
}  # fmt: skip
"""A report without a gate."""


@pytest.mark.parametrize(
    "changes", [{}, NOTHING_ELSE, TESTS_ALONE], ids=["all", "little", "tests alone"]
)
def test_report_html_holds_all_of_report_md(changes: dict[str, Any]) -> None:
    """Every cell and every sentence, in order; text stays text."""
    report = report_figures("A <b> & c") | changes
    parts = PageParts(report_html(report, PageExamples(), b"png"))
    assert parts.of_tag("img")[0]["src"] == data_url("report.png", b"png")
    assert not {"b", "i"} & {tag for tag, _ in parts.tags}

    # What is left of the Markdown without its signs stands in the page, block after block.
    page = " ".join(parts.text.split())
    place = 0
    for line in report_markdown(report).splitlines()[1:]:
        for cell in re.sub(r"^(#+|\*) |!\[.*|`|^\|[ -|]*\|$", "", line).strip("|").split(" | "):
            if cell.strip() and set(cell) - set("-| "):
                assert cell.strip() in page[place:], cell
                place = page.index(cell.strip(), place)


@pytest.fixture(scope="module")
def sidecars(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_sidecars(tmp_path_factory.mktemp("sidecars"))


def test_reasoned_queries_are_the_eligible_ones_of_the_part(sidecars: tuple[Path, Path]) -> None:
    found = read_reasoned(sidecars[1], sidecars[0])
    assert len(found) == 6
    assert {one.query.task for one in found} == {"flag-capital-t2i"}
    assert {one.query.split for one in found} == {"test"}
    assert all(one.names_target and one.gain == 1.0 for one in found)


def test_a_card_shows_the_query_what_was_written_and_who_came_first(
    sidecars: tuple[Path, Path],
) -> None:
    changed = read_reasoned(sidecars[1], sidecars[0])
    examples = PageExamples(changed=read_examples(changed, CandidatePictures.open(sidecars[0])))
    parts = PageParts(report_html(report_figures("x"), examples, b"png"))
    helped = sum(one.climb > 0 for one in changed)
    assert len(parts.of_tag("article")) == min(helped, 5) + min(len(changed) - helped, 5)
    for words in (
        "the flag of the country of capital-19", "The country is country-19.", "rank 3 → 1",
        "first without", "country-00", "names the target", "rank 1 → 3",
    ):  # fmt: skip
        assert words in parts.text
    assert len(parts.of_tag("img")) == 3 * len(parts.of_tag("article")) + 1, "and the figure"


def reasoned(one: ReasonedQuery, before: float, after: float, gain: float = 0) -> ReasonedQuery:
    return replace(one, before=Depth(-2, before, "x"), after=Depth(gain - 2, after, "y"))


def test_the_extremes_are_found_by_reciprocal_rank_then_gain(sidecars: tuple[Path, Path]) -> None:
    one = read_reasoned(sidecars[1], sidecars[0])[0]
    ranks = [(9, 1), (200, 100), (1, 9), (2, 1), (5, 5), (1, 2), (4, 5)]
    rows = [reasoned(one, *pair) for pair in ranks] + [reasoned(one, 9, 1, gain=1)]
    helped, hurt = most_changed(rows, 3)
    assert [(q.before.rank, q.after.rank) for q in helped] == [(9, 1), (9, 1), (2, 1)]
    assert helped[0].gain == 1
    assert [(q.before.rank, q.after.rank) for q in hurt] == [(1, 9), (1, 2), (4, 5)]
    assert most_changed([reasoned(one, 5, 5)]) == ([], [])


def test_the_right_candidate_shown_is_one_that_came_first(sidecars: tuple[Path, Path]) -> None:
    one = replace(read_reasoned(sidecars[1], sidecars[0])[0], right=("u", "y"))
    assert reasoned(one, 3, 1).shown_right == "y"
    assert replace(one, right=("u", "v")).shown_right == "u"


def test_data_urls_know_their_kind() -> None:
    assert data_url("c0.000.jpeg", b"\xff").startswith("data:image/jpeg;base64,/w==")


def test_a_page_holds_large_pictures_reduced() -> None:
    large, broken = noise(700, 900), b"\x89PNG" + bytes(300_000)
    url = small_url("q0.png", large)
    assert len(url) < len(large) / 2
    assert read_picture(b64decode(url.split(",")[1]), ["WEBP"], "url").size == (768, 597)
    assert small_url("q0.png", noise(70, 90)) == data_url("q0.png", noise(70, 90))
    assert small_url("q0.png", broken) == ""


def noise(height: int, width: int) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3))
    return png(pixels, 8, 2)


def test_old_depth_values_are_one_clear_error(sidecars: tuple[Path, Path], tmp_path: Path) -> None:
    root, runs = sidecars
    (tmp_path / "rationales").symlink_to(runs / "rationales")
    write_tiny_depth_values(root, tmp_path / "depth_values")
    record_origins(tmp_path / "depth_values", root / "queries", tmp_path / "rationales")
    with pytest.raises(
        ValueError, match=r"lacks ranks and top.*stage `depth_values` again"
    ) as raised:
        read_reasoned(tmp_path, root)
    assert "\n" not in str(raised.value)


def test_broken_depth_values_are_one_clear_error(
    sidecars: tuple[Path, Path], tmp_path: Path
) -> None:
    broken: list[dict[str, Any]] = [
        {"ranks": [0, 1]},
        {"ranks": [None, 1]},
        {"top": ["a"]},
        {"depth_value": [[], []]},
        {"depths": ["full"]},
        {"depths": ["short", "full"]},
    ]
    write_tiny_depth_values(sidecars[0], tmp_path)
    whole = {"ranks": [1, 2], "top": ["a", "b"]}
    rewrite(tmp_path, lambda e, data: data | whole | broken[int(e.key) % len(broken)])
    index = ShardIndex.open(tmp_path)
    for number in range(len(broken)):
        with pytest.raises(ValueError, match="`depth_values` again"):
            read_depths(index, f"{number:08d}")


def test_the_deepest_depth_is_compared_with_the_direct_one(
    sidecars: tuple[Path, Path], tmp_path: Path
) -> None:
    """Where three depths were measured, with the rationale that belongs to the last."""
    root, runs = sidecars
    write_tiny_rationales(root, tmp_path / "rationales")
    write_tiny_depth_values(root, tmp_path / "depth_values")
    three = {"depths": ["direct", "short", "full"], "depth_value": [[-3], [-2], [-1]]}
    three |= {"ranks": [4, 3, 2], "top": ["a", "b", "c"]}
    rewrite(tmp_path / "depth_values", lambda _, data: data | three)
    rewrite(
        tmp_path / "rationales",
        lambda _, rows: [row | {"depth": "short"} for row in rows[:1]] + rows[1:],
    )
    record_origins(tmp_path / "depth_values", root / "queries", tmp_path / "rationales")
    found = read_reasoned(tmp_path, root)[0]
    assert (found.before.rank, found.after.rank, found.gain) == (4, 2, 2)
    assert found.rationale.answer == "country-xx", "the first one that is full"
    rewrite(tmp_path / "rationales", lambda _, rows: [row | {"depth": "short"} for row in rows])
    with pytest.raises(ValueError, match=r"depth_values/.* was not made from .*rationales/"):
        read_reasoned(tmp_path, root)
    record_origins(tmp_path / "depth_values", root / "queries", tmp_path / "rationales")
    with pytest.raises(ValueError, match="no such rationale.*stage `depth_values` again"):
        read_reasoned(tmp_path, root)


def test_sidecars_of_other_data_are_one_clear_error(sidecars: tuple[Path, Path]) -> None:
    root, runs = sidecars
    source = ShardIndex.open(root / "pairs/questions")
    with pytest.raises(ValueError, match=r"says nothing about .*questions.*--data-root"):
        check_covers(source, ShardIndex.open(runs / "depth_values"))
