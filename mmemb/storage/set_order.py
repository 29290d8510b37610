"""The order in which CPython walks a set of whole numbers, computed without a set.

A published evaluator sends labels through a Python set and leaves their grades in place. To repeat
its numbers the order has to be the same on every interpreter, so no real set is used.
"""

from __future__ import annotations

from collections.abc import Iterable

_SMALLEST_TABLE = 8
_PROBES = 9
"""Slots behind the first one that are tried before the next jump."""

_SHIFT = 5
_MODULUS = 2**61 - 1
"""Hashes of whole numbers are remainders of this prime, on 64-bit builds."""

_LARGE_SET = 50_000
"""Above this size a table grows to twice its content, else to four times."""

_Slot = int | None


def set_order(numbers: Iterable[int]) -> list[int]:
    """Distinct numbers in the order of `set(numbers)` under CPython 3.7 and later.

    Args:
        numbers: whole numbers from 0, in the order in which they enter the set.

    >>> set_order([7, 8]), set_order([1, 2, 1])
    ([8, 7], [1, 2])
    """
    table: list[_Slot] = [None] * _SMALLEST_TABLE
    size = 0
    for number in numbers:
        place = _slot(table, number)
        if table[place] is not None:
            continue
        table[place] = number
        size += 1

        # A table that is three fifths full grows, and its content enters the new one in order.
        if size * 5 >= (len(table) - 1) * 3:
            table = _grown(table, size * (2 if size > _LARGE_SET else 4))

    return [number for number in table if number is not None]


def _slot(table: list[_Slot], number: int) -> int:
    """Place of a number in an open-addressing table: its own, or the first free one it meets."""
    mask = len(table) - 1
    perturb = number % _MODULUS
    place = perturb & mask

    while True:
        # Neighbours first, if they all lie inside the table; then a jump that mixes in high bits.
        last = place + _PROBES if place + _PROBES <= mask else place
        for near in range(place, last + 1):
            if table[near] is None or table[near] == number:
                return near
        perturb >>= _SHIFT
        place = (place * 5 + 1 + perturb) & mask


def _grown(table: list[_Slot], minimum: int) -> list[_Slot]:
    """A table of the smallest power of two above `minimum`, with the same content."""
    length = _SMALLEST_TABLE
    while length <= minimum:
        length *= 2

    new: list[_Slot] = [None] * length
    for number in table:
        if number is not None:
            new[_slot(new, number)] = number
    return new
