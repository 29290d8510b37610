"""Numbers with their nouns in messages: `1 row`, `2 rows`; and a noun with its article."""

from __future__ import annotations


def counted(number: int, noun: str, plural: str = "") -> str:
    """Returns a number with its noun, in the singular or the plural.

    Args:
        number: of things.
        noun: in the singular.
        plural: for a noun that takes more than an `s`.

    >>> counted(1, "fault"), counted(0, "row"), counted(12000, "query", "queries")
    ('1 fault', '0 rows', '12,000 queries')
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def with_article(noun: str) -> str:
    """Returns a noun behind its article, by its first letter.

    >>> with_article("int"), with_article("str")
    ('an int', 'a str')
    """
    return f"{'an' if noun[:1].lower() in 'aeio' else 'a'} {noun}"
