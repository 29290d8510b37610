"""Exact cuts of concepts into splits, and of train concepts into val, folds and mixed rows.

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
    PROMPT_CONCEPTS,
    SPLIT,
    SPLIT_SHARES,
    VAL_SHARE,
)
from mmemb.records.hashing import stable_hash

EVALUATED = ("val", "gate", "calibration", "test")
"""Splits whose concepts are asked about; questions of these are in no training pair."""

_Row = TypeVar("_Row")


def capped(rows: list[_Row], task: str, split: str) -> list[_Row]:
    """The first rows, as many as the benchmark asks for in this split."""
    return rows[: (CAPS | MORE_CAPS).get(task, {}).get(split)]


def by_hash(names: Iterable[str], salt: str) -> list[str]:
    """Distinct names in an order that depends on nothing but the names and the salt."""
    return sorted(set(names), key=lambda name: (stable_hash(salt, name), name))


def pinned_first(names: Iterable[str], salt: str) -> list[str]:
    """Sorts by hash, the concepts of the few-shot prompt first: they get the first label."""
    return sorted(by_hash(names, salt), key=lambda name: name not in PROMPT_CONCEPTS)


def cut(names: Iterable[str], shares: Mapping[str, float], salt: str) -> dict[str, str]:
    """Name -> label, with label counts exact to within one; the prompt's concepts come first.

    >>> split_of = cut(map(str, range(20)), {"a": 0.25, "b": 0.75}, "salt")
    >>> sorted(split_of.values()).count("a")
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
    """The splits, folds and mixed rows of the concepts of one kind.

    Attributes:
        split_of: concept -> `train` (without val), `val`, `gate`, `calibration`, `test`.
        folds: train concept -> `a` or `b`, the two judges' folds.
        mixed: train concept -> the split in which mixed rows ask about it.
    """

    split_of: dict[str, str]
    folds: dict[str, str]
    mixed: dict[str, str]

    @classmethod
    def of(cls, concepts: Iterable[str], kind: str) -> Split:
        """Cuts the concepts of one kind (`country`, `emoji`)."""
        split_of = cut(concepts, SPLIT_SHARES, f"{kind}/parts")
        # Val is cut from train, so that the other splits do not depend on its share.
        train = [name for name, split in split_of.items() if split == "train"]
        split_of |= cut(train, {"train": 1 - VAL_SHARE, "val": VAL_SHARE}, f"{kind}/val")
        train = [name for name, split in split_of.items() if split == "train"]
        # Val has left `train`: folds hold trained concepts only. Each judge is trained on one
        # fold and judges the other.
        folds = cut(train, {"a": 0.5, "b": 0.5}, f"{kind}/halves")
        return cls(split_of, folds, cut(train, MIXED_SHARES, f"{kind}/mixed"))

    def names(self, split: str) -> list[str]:
        """The concepts of a split, in hash order."""
        return by_hash((n for n, p in self.split_of.items() if p == split), f"order/{split}")
