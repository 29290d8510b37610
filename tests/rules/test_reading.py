"""The source reads like text: paragraphs, reasons, docstrings that are sentences.

Fails only below half of the targets, since a comment must not be written for a count.
"""

from __future__ import annotations

import pytest

from tests.rules.reading import BLANK_LINES, COMMENTS, HANGING, ROOMS, read


@pytest.mark.parametrize("room", ROOMS)
def test_bodies_have_paragraphs_and_reasons(room: str) -> None:
    reading = read(room)
    assert reading.blank_per_100 >= BLANK_LINES / 2
    assert reading.comments_per_100 >= COMMENTS / 2


def test_docstrings_begin_with_a_verb_or_a_noun() -> None:
    hanging = read(*ROOMS).hanging
    assert len(hanging) <= 2 * HANGING, hanging
