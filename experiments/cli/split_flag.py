"""Takes a flag out of a command line before a parser sees it."""

from __future__ import annotations

from collections.abc import Sequence


def split_flag(arguments: Sequence[str], flag: str) -> tuple[list[str], str | None]:
    """Returns the other arguments, and the value of a flag; None if it is not there.

    A flag without a value stays among the arguments.

    >>> split_flag(["fit", "--explain", "trainer.max_steps", "--config", "a.yaml"], "--explain")
    (['fit', '--config', 'a.yaml'], 'trainer.max_steps')
    >>> split_flag(["search", "--root=work"], "--root"), split_flag(["fit"], "--root")
    ((['search'], 'work'), (['fit'], None))
    """
    words = list(arguments)
    for place, word in enumerate(words):
        if word == flag and place + 1 < len(words):
            return words[:place] + words[place + 2 :], words[place + 1]
        if word.startswith(f"{flag}="):
            return words[:place] + words[place + 1 :], word.partition("=")[2]
    return words, None
