"""Countries that can be shown, their cut, and the candidates of the flag-* tasks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from datamodules.prepare.pocket.art import (
    FLUENT,
    ICONS,
    NOTO,
    OPENMOJI,
    Art,
    Picture,
    flag_sequence,
)
from datamodules.prepare.pocket.countries import Country, same_flags, unique_clues
from datamodules.prepare.pocket.rows import CandidateRow
from datamodules.prepare.pocket.splits import Split, by_hash
from datamodules.prepare.pocket.tasks import (
    FLAG_GALLERY,
    TEXT_QUESTIONS,
    TRAIN_FLAG_GALLERY,
    Question,
)

TRAIN_STYLES = (OPENMOJI, FLUENT, NOTO)
STYLES = (ICONS, *TRAIN_STYLES)
TEXT_GALLERIES = {"capital": "capitals", "currency": "currencies", "continent": "continents"}
"""Galleries of texts, by the fact that they answer."""


@final
@dataclass(frozen=True)
class Flags:
    """Countries that can be shown, their split, and which of them look the same.

    Attributes:
        everyone: all countries of the source, those without a flag too: a clue must be unique
            among them.
        shown: countries with a flag in the gallery and in a training style.
        same: style -> code -> codes with the same picture, itself first.
        text_questions: what is asked about them by text.
    """

    everyone: list[Country]
    shown: list[Country]
    split: Split
    art: Art
    same: dict[str, dict[str, tuple[str, ...]]]
    text_questions: tuple[Question, ...] = TEXT_QUESTIONS

    @classmethod
    def of(
        cls,
        countries: list[Country],
        art: Art,
        text_questions: tuple[Question, ...] = TEXT_QUESTIONS,
    ) -> Flags:
        """Cuts the countries that have a picture in the gallery and in a training style."""
        shown = [c for c in countries if art.has(Picture(ICONS, c.code)) and styles(c, art)]
        # Within a style, as two flags may look the same in one drawing only.
        same = {style: same_flags(_pixels(shown, style, art)) for style in STYLES}
        split = Split.of((c.concept for c in shown), "country")
        return cls(countries, shown, split, art, same, text_questions)

    def split_of(self, country: Country) -> str:
        """The split of the country's concept."""
        return self.split.split_of[country.concept]

    def clues(self, question: Question) -> list[tuple[Country, str]]:
        """Countries that the question can ask for, with the clue, in hash order."""
        # Unique among all countries of the source, also those without a flag.
        clues = {
            f"{country.code}/{clue}": (country, clue)
            for country, clue in unique_clues(self.everyone, question.fact)
            if country.concept in self.split.split_of
        }
        return [clues[name] for name in by_hash(clues, f"clues/{question.fact}")]


def styles(country: Country, art: Art) -> list[str]:
    """Training styles that hold a drawing of the country's flag."""
    return [s for s in TRAIN_STYLES if art.has(Picture(s, flag_sequence(country.code)))]


def flag_picture(country: Country, style: str) -> Picture:
    """The country's flag in a style."""
    return Picture(style, country.code if style == ICONS else flag_sequence(country.code))


def flag_name(code: str, style: str) -> str:
    """The flag's name in its gallery.

    >>> flag_name("fr", ICONS), flag_name("fr", FLUENT)
    ('fr', 'fr-3d')
    """
    return code if style == ICONS else f"{code}-{style}"


def _pixels(countries: list[Country], style: str, art: Art) -> dict[str, bytes]:
    pictures = {c.code: flag_picture(c, style) for c in countries}
    return {code: art.render(p) for code, p in pictures.items() if art.has(p)}


def style_of_turn(country: Country, art: Art, turn: int) -> str:
    """Training styles in turn, as far as the country has them."""
    available = styles(country, art)
    return available[turn % len(available)]


def flag_candidates(flags: Flags) -> Iterator[CandidateRow]:
    """Flags of the evaluation style and of each training style, and the answer texts."""
    # Training flags have a gallery of their own, so that evaluation ranks one style only.
    for style in STYLES:
        gallery = FLAG_GALLERY if style == ICONS else TRAIN_FLAG_GALLERY
        for country in flags.shown:
            if flags.art.has(picture := flag_picture(country, style)):
                yield CandidateRow(gallery, flag_name(country.code, style), image=picture)

    for fact, gallery in TEXT_GALLERIES.items():
        for text in sorted({text for c in flags.shown for text in c.clues(fact)}):
            yield CandidateRow(gallery, text, text=text)
