"""Training pairs of the flag-* tasks: all names and flags, questions of train countries only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from datamodules.prepare.pocket.countries import Country, fold
from datamodules.prepare.pocket.flags import (
    TEXT_GALLERIES,
    Flags,
    flag_name,
    flag_picture,
    style_of_turn,
    styles,
)
from datamodules.prepare.pocket.rows import PairRow
from datamodules.prepare.pocket.splits import capped
from datamodules.prepare.pocket.tasks import (
    IMAGE_QUESTIONS,
    INSTRUCTIONS,
    NAME_TEMPLATE,
    NAME_VARIANTS,
    TRAIN_FLAG_GALLERY,
)


def plain_flag_pairs(flags: Flags) -> list[PairRow]:
    """Names, drawing styles and continents: what the trunk may learn."""
    return [*_names(flags), *_style_pairs(flags), *_continent_pairs(flags)]


def question_pairs(flags: Flags) -> list[PairRow]:
    """Questions about train countries; those a text-only writer can read come first."""
    return [*_text_questions(flags), *_image_questions(flags)]


def _names(flags: Flags) -> Iterator[PairRow]:
    for country in flags.shown:
        texts = [t.format(country.name) for t in NAME_VARIANTS]
        wordings = [(style, text) for style in styles(country, flags.art) for text in texts]
        wordings += [
            (style_of_turn(country, flags.art, turn), NAME_TEMPLATE.format(alias))
            for turn, alias in enumerate(country.aliases)
        ]

        for number, (style, text) in enumerate(wordings):
            key = f"flag-name-{country.code}-{number}"
            yield PairRow(
                key=key,
                **country.labels("flag-name", "name"),
                **_to_flag(flags, country, style),
                source="flags",
                text=text,
                instruction=INSTRUCTIONS["text-flag"],
            )


def _style_pairs(flags: Flags) -> Iterator[PairRow]:
    for turn, country in enumerate(flags.shown):
        available = styles(country, flags.art)
        # Without a second style there is nothing to compare.
        if len(available) < 2:
            continue

        one, other = (available[(turn + n) % len(available)] for n in (1, 2))
        yield PairRow(
            key=f"flag-style-{country.code}",
            **country.labels("flag-style", "style"),
            **_to_flag(flags, country, other),
            source="flags",
            instruction=INSTRUCTIONS["flag-style"],
            image=flag_picture(country, one),
        )


def _continent_pairs(flags: Flags) -> Iterator[PairRow]:
    for country in _train(flags):
        for style in styles(country, flags.art):
            yield PairRow(
                key=f"flag-continent-{country.code}-{style}",
                **country.labels("flag-continent", "continent"),
                **_to_answer("continent", country.continents),
                source="continent",
                instruction=INSTRUCTIONS["flag-continent"],
                image=flag_picture(country, style),
            )


def _train(flags: Flags) -> list[Country]:
    return [country for country in flags.shown if flags.split_of(country) == "train"]


def _text_questions(flags: Flags) -> Iterator[PairRow]:
    for turn, question in enumerate(flags.text_questions):
        # Questions of other splits are never trained, or the test would measure memory.
        clues = [(c, clue) for c, clue in flags.clues(question) if flags.split_of(c) == "train"]

        # The fold of the country decides which of the two judges is trained on the question.
        for number, (country, clue) in enumerate(capped(clues, question.task, "train")):
            yield PairRow(
                key=f"{question.task}-{country.code}-{_slug(clue, number)}",
                **country.labels(question.task, question.fact),
                **_to_flag(flags, country, style_of_turn(country, flags.art, turn + number)),
                source="questions",
                text=question.text(clue),
                instruction=INSTRUCTIONS["text-flag"],
                fold=flags.split.folds[country.concept],
            )


def _slug(clue: str, number: int) -> str:
    # Keys name files in shards, so only plain letters remain.
    plain = "-".join("".join(c if c.isascii() and c.isalnum() else " " for c in fold(clue)).split())
    return plain[:30] or str(number)


def _image_questions(flags: Flags) -> Iterator[PairRow]:
    for turn, question in enumerate(IMAGE_QUESTIONS):
        for number, country in enumerate(_train(flags)):
            # A country may lack the fact, such as a capital.
            if not (right := country.clues(question.fact)):
                continue

            yield PairRow(
                key=f"{question.task}-{country.code}",
                **country.labels(question.task, question.fact),
                **_to_answer(question.fact, right),
                source="answers",
                instruction=INSTRUCTIONS["flag-answer"],
                text=question.text(),
                image=flag_picture(country, style_of_turn(country, flags.art, turn + number)),
                fold=flags.split.folds[country.concept],
            )


def _to_flag(flags: Flags, country: Country, style: str) -> dict[str, Any]:
    """The target fields of a pair that aims at a flag: right is the country's flag in every
    training style, and what looks the same there."""
    available = styles(country, flags.art)
    right = (flag_name(c, s) for s in available for c in flags.same[s][country.code])
    return {
        "gallery": TRAIN_FLAG_GALLERY,
        "target_name": flag_name(country.code, style),
        "target_image": flag_picture(country, style),
        "positives": tuple(right),
        "answers": country.answers,
    }


def _to_answer(fact: str, right: tuple[str, ...]) -> dict[str, Any]:
    """The target fields of a pair that aims at a text; all right ones are positives."""
    target = {"target_name": right[0], "target_text": right[0]}
    return target | {"gallery": TEXT_GALLERIES[fact], "positives": right, "answers": right}
