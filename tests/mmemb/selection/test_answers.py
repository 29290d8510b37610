"""Whether a text names its target, by hand."""

from __future__ import annotations

import pytest

from mmemb.selection.answers import names_target


@pytest.mark.parametrize(
    ("text", "answers", "named"),
    [
        ("<answer>Paris, FRANCE</answer>", ["France"], True),
        ("the Nigerian capital", ["Niger", "Nigeria"], False),
        ("São Tomé and Príncipe!", ["sao tome and principe"], True),
        ("Cote d'Ivoire", ["Côte d’Ivoire"], True),
        ("Straße", ["STRASSE"], True),
        ("a guinea_pig", ["pig"], True),
        ("", ["France"], False),
        ("France", [], False),
        ("France", ["", "  "], False),
        ("the 🇫🇷 flag", ["🇫🇷"], True),
        ("the 🇩🇪 flag", ["🇫🇷"], False),
    ],
)
def test_names_target(text: str, answers: list[str], named: bool) -> None:
    assert names_target(text, answers) is named


def test_a_run_of_accents_is_read_in_a_moment() -> None:
    """Python would put them in order in a time of their square: a minute."""
    text = "Cote d'Ivoire" + "\u0315\u0300" * 50_000 + " is it"
    assert names_target(text, ["Côte d’Ivoire"])
