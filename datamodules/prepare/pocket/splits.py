"""Exact cuts of concepts into parts, and of train concepts into val, halves and mixed rows.

Every cut sorts names by hash and slices at the shares: no share depends on luck
(docs/method.md section 3).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar, final

from datamodules.prepare.pocket.full_tasks import CAPS as MORE_CAPS
from datamodules.prepare.pocket.tasks import (
    CAPS,
    MIXED_SHARES,
    PART_SHARES,
    PROMPT_CONCEPTS,
    SPLIT,
    VAL_SHARE,
)
from mmemb.records.hashing import stable_hash

EVALUATED = ("val", "gate", "calibration", "test")
"""Parts whose concepts are asked about; questions of these are in no training pair."""

_Row = TypeVar("_Row")


def capped(rows: list[_Row], task: str, part: str) -> list[_Row]:
    """The first rows, as many as the benchmark asks for in this part."""
    return rows[: (CAPS | MORE_CAPS).get(task, {}).get(part)]


def by_hash(names: Iterable[str], salt: str) -> list[str]:
    """Distinct names in an order that depends on nothing but the names and the salt."""
    return sorted(set(names), key=lambda name: (stable_hash(salt, name), name))


def pinned_first(names: Iterable[str], salt: str) -> list[str]:
    """Sorts by hash, the concepts of the few-shot prompt first: they get the first label."""
    return sorted(by_hash(names, salt), key=lambda name: name not in PROMPT_CONCEPTS)


def cut(names: Iterable[str], shares: Mapping[str, float], salt: str) -> dict[str, str]:
    """Name -> label, with label counts exact to within one; the prompt's concepts come first.

    >>> parts = cut(map(str, range(20)), {"a": 0.25, "b": 0.75}, "salt")
    >>> sorted(parts.values()).count("a")
    5
    """
    ordered = pinned_first(names, f"{SPLIT}/{salt}")
    labels, done, total = {}, 0, 0.0

    for label, share in shares.items():
        # The sum is rounded, not each share: every concept gets a label.
        total += share
        end = round(total * len(ordered))
        labels.update(dict.fromkeys(ordered[done:end], label))
        done = end

    assert done == len(ordered), f"shares {dict(shares)} do not sum to 1"
    return labels


@final
@dataclass(frozen=True)
class Split:
    """Parts, halves and mixed parts of the concepts of one kind.

    Attributes:
        parts: concept -> `train` (without val), `val`, `gate`, `calibration`, `test`.
        halves: train concept -> `a` or `b`, the two judges' halves.
        mixed: train concept -> the part in which mixed rows ask about it.
    """

    parts: dict[str, str]
    halves: dict[str, str]
    mixed: dict[str, str]

    @classmethod
    def of(cls, concepts: Iterable[str], kind: str) -> Split:
        """Cuts the concepts of one kind (`country`, `emoji`)."""
        parts = cut(concepts, PART_SHARES, f"{kind}/parts")
        # Val is cut from train, so that the other parts do not depend on its share.
        train = [name for name, part in parts.items() if part == "train"]
        parts |= cut(train, {"train": 1 - VAL_SHARE, "val": VAL_SHARE}, f"{kind}/val")
        train = [name for name, part in parts.items() if part == "train"]
        # Val has left `train`: halves hold trained concepts only. Each judge is trained on one half
        # and judges the other.
        halves = cut(train, {"a": 0.5, "b": 0.5}, f"{kind}/halves")
        return cls(parts, halves, cut(train, MIXED_SHARES, f"{kind}/mixed"))

    def names(self, part: str) -> list[str]:
        """The concepts of a part, in hash order."""
        return by_hash((n for n, p in self.parts.items() if p == part), f"order/{part}")
