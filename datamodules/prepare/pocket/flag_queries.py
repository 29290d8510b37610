"""Evaluation queries of the flag-* tasks, in splits that never share a question."""

from __future__ import annotations

from collections.abc import Iterator

from datamodules.prepare.pocket.art import ICONS
from datamodules.prepare.pocket.countries import Country
from datamodules.prepare.pocket.flags import TEXT_GALLERIES, Flags, flag_picture
from datamodules.prepare.pocket.rows import QueryRow
from datamodules.prepare.pocket.splits import EVALUATED, capped
from datamodules.prepare.pocket.tasks import (
    FLAG_GALLERY,
    IMAGE_QUESTIONS,
    INSTRUCTIONS,
    MIXED_QUESTIONS,
    NAME_TEMPLATE,
)


def flag_queries(flags: Flags) -> list[QueryRow]:
    """All queries about flags."""
    return [*_questions(flags), *_mixed(flags), *_name_queries(flags), *_image_queries(flags)]


def _flag_query(
    flags: Flags, task: str, split: str, country: Country, fact: str, text: str
) -> QueryRow:
    return QueryRow(
        **country.labels(task, fact),
        split=split,
        gallery=FLAG_GALLERY,
        relevance=flags.same[ICONS][country.code],
        instruction=INSTRUCTIONS["text-flag"],
        text=text,
        answers=country.answers,
    )


def _questions(flags: Flags) -> Iterator[QueryRow]:
    for question in flags.text_questions:
        for split in EVALUATED:
            clues = [(c, clue) for c, clue in flags.clues(question) if flags.split_of(c) == split]

            for country, clue in capped(clues, question.task, split):
                text = question.text(clue)
                yield _flag_query(flags, question.task, split, country, question.fact, text)


def _mixed(flags: Flags) -> Iterator[QueryRow]:
    """Yields, for each split, as many train countries as its own, under a wording never trained."""
    for question in MIXED_QUESTIONS:
        for split in EVALUATED[1:]:
            clues = flags.clues(question)
            split_clues = [(c, clue) for c, clue in clues if flags.split_of(c) == split]
            train = [(c, clue) for c, clue in clues if flags.split.mixed.get(c.concept) == split]

            # Equal numbers, so that seen and unseen countries weigh the same.
            size = min(len(split_clues), len(train))
            for country, clue in split_clues[:size] + train[:size]:
                text = question.text(clue)
                yield _flag_query(flags, question.task, split, country, question.fact, text)


def _name_queries(flags: Flags) -> Iterator[QueryRow]:
    """Names of every country; those of train count as `test`, since all names are trained."""
    for country in flags.shown:
        split, text = flags.split_of(country), NAME_TEMPLATE.format(country.name)
        split = "test" if split == "train" else split
        yield _flag_query(flags, "flag-name", split, country, "name", text)


def _image_queries(flags: Flags) -> Iterator[QueryRow]:
    questions = [(q.task, q.fact, "flag-answer", q.text()) for q in IMAGE_QUESTIONS]
    questions += [("flag-continent", "continent", "flag-continent", "")]

    for task, fact, instruction, text in questions:
        for country in flags.shown:
            split, right = flags.split_of(country), country.clues(fact)
            # Train countries are trained on these answers.
            if split in EVALUATED and right:
                yield QueryRow(
                    **country.labels(task, fact),
                    split=split,
                    gallery=TEXT_GALLERIES[fact],
                    relevance=right,
                    answers=right,
                    instruction=INSTRUCTIONS[instruction],
                    text=text,
                    image=flag_picture(country, ICONS),
                )
