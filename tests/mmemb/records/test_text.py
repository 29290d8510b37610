"""Texts of data: valid Unicode, and something to see."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmemb.records.text import check_template, check_unicode, has_text, limit_marks

NOTHING = (
    " \t\r\n\x00\x1f\x7f\x85\xa0\xad\u200b\u200d\u200e\u2028\u2060\u2800\u3000\u3164\ufe0f\ufeff"
)


@given(st.text(st.sampled_from(NOTHING), max_size=9))
def test_what_nobody_sees_is_no_text(text: str) -> None:
    assert not has_text(text)
    assert has_text(f"{text}.{text}")


@given(st.text(st.characters(categories=["L", "N", "P", "S"], exclude_characters=NOTHING)))
def test_whatever_is_drawn_is_text(text: str) -> None:
    # Fillers of Hangul are letters by their category, and are drawn as nothing.
    drawn = [letter for letter in text if letter not in "\u115f\u1160\u3164\uffa0"]
    assert has_text(text) == bool(drawn)


def test_any_script_is_text() -> None:
    assert all(map(has_text, ("é", "漢", "ا", "🐈", "👩\u200d🚀", "0", "-", "\ue000", "\ufffd")))


def test_half_a_surrogate_pair_is_named_by_its_place() -> None:
    with pytest.raises(
        ValueError, match=r"'a cat \\ud83d' holds half of a surrogate pair at letter 6"
    ):
        check_unicode("a cat \ud83d")
    check_unicode("naïve 🐈")


@given(st.text(st.sampled_from("aé漢\u0301\u0327\u0f73\u0e31 "), max_size=30))
def test_ordinary_marks_stay(text: str) -> None:
    assert limit_marks(text) == text


@given(st.integers(0, 100), st.sampled_from(["\u0315\u0300", "\u0f73", "\u0301"]))
def test_a_run_of_marks_is_bounded(times: int, marks: str) -> None:
    found = limit_marks(f"a{marks * times}b{marks * times}")
    assert all(len(run) <= 30 for run in found[1:].split("b"))
    assert found.replace(marks[0], "").replace(marks[-1], "") == "ab"


@pytest.mark.parametrize(
    "template",
    ["{text:>9999999999}", "{text.__class__}", "{text[0]}", "{text!r}", "{}", "{other}", "{", "}"],
)
def test_a_template_has_plain_fields_alone(template: str) -> None:
    check_template("{text}, {{text:>9}}: {labels}", ("text", "labels"), "template")
    with pytest.raises(ValueError, match=r"expected the fields \{text\} and \{labels\}, only"):
        check_template(template, ("text", "labels"), "template")
