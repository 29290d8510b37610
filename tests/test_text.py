"""Texts of data: valid Unicode, and something to see."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmemb.text import check_unicode, has_text

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
