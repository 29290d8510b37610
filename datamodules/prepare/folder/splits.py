"""Cuts the rows of a table into splits by content: what two rows share, one split has alone."""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import final

from datamodules.prepare.cells import shown
from datamodules.prepare.folder.table import OwnRow
from mmemb.records.counted_nouns import counted
from mmemb.records.hashing import stable_hash
from mmemb.records.pairs import SPLITS

AUTO = "auto"

_SHARES = {"train": 70, "val": 5, "gate": 10, "calibration": 5, "test": 10}
"""Percent of the rows: most are trained on, and every stage of the pipeline has some of its own."""

_LARGE = 10
"""Percent of the rows from which on one group is worth a warning."""

_SHORT = 0.8
"""Part of its share below which a split is worth a warning."""

RowElements = Sequence[Sequence[str]]
"""Of the query and of each right answer: hashes of its text ("" if there is none) and its media."""


@final
@dataclass(frozen=True, slots=True)
class Shares:
    """How the rows of a table without splits get theirs.

    Attributes:
        percent: split -> percent of the rows; together 100.
        labels: whether texts of targets are labels, which rows of several splits may share.
    """

    percent: Mapping[str, int] = field(default_factory=lambda: dict(_SHARES))
    labels: bool = False


@final
@dataclass(frozen=True, slots=True)
class Cut:
    """The rows of a table with their splits.

    Attributes:
        rows: in the order of the table.
        lines: what was done, and why a split is smaller than asked for.
    """

    rows: tuple[OwnRow, ...]
    lines: tuple[str, ...]


def split_flag(text: str) -> str | dict[str, int]:
    """Reads the flag `--split`: one split for all rows, or split -> percent of the rows.

    >>> split_flag("test"), split_flag("auto:train=90,test=10")
    ('test', {'train': 90, 'test': 10})
    """
    if text in SPLITS:
        return text
    if text == AUTO:
        return dict(_SHARES)

    start, _, listed = text.partition(":")
    pairs = [part.partition("=")[::2] for part in listed.split(",")]
    percent = {name: int(share) for name, share in pairs if name in SPLITS and share.isdecimal()}
    if start != AUTO or len(percent) != len(pairs) or sum(percent.values()) != 100:
        raise argparse.ArgumentTypeError(
            f"{shown(text)}: expected one of {', '.join(SPLITS)} for all rows, auto, or auto with "
            "percents that sum to 100, such as auto:train=80,val=10,test=10"
        )
    return {name: share for name, share in percent.items() if share}


def cut_rows(rows: Sequence[OwnRow], elements: Mapping[int, RowElements], shares: Shares) -> Cut:
    """Gives every row a split, so that no two splits share a text, a picture, a clip or a concept.

    Rows that share anything, also by way of other rows, are one group. Groups are sorted by a hash
    of their content and cut at the shares, so that neither the order of the table nor its ids
    matter. A group that is larger than the smallest share is trained on. Negatives join nothing:
    they are often drawn from all targets.

    Args:
        rows: of the table, without faults.
        elements: number of a row -> what it shows.
        shares: of the splits.

    Raises:
        ValueError: a split would get no row.
    """
    joining = {row.number: _joining(row, elements[row.number], shares.labels) for row in rows}
    groups = _groups(joining)
    splits = _splits(groups, joining, shares.percent)

    sizes = Counter(splits.values())
    why = _why_joined(max(groups, key=len), rows, joining, len(rows)) if groups else ""
    if empty := [split for split in shares.percent if not sizes[split]]:
        several = f"{len(groups):,} groups that share nothing"
        found = several if len(groups) > 1 else "one group"
        raise ValueError(
            f"--split auto leaves no row for {', '.join(empty)}: {counted(len(rows), 'row')} in "
            f"{found}.{why} Give more rows, or a column split of your own."
        )

    lines = list(_lines(groups, splits, shares.percent, len(rows)))
    wanted = {split: percent * len(rows) / 100 for split, percent in shares.percent.items()}
    is_short = any(sizes[split] < _SHORT * want - 1 for split, want in wanted.items())
    if is_short or max(map(len, groups)) * 100 >= _LARGE * len(rows) > 100:
        lines.append(f"warning: not every share could be met, or only by few groups.{why}")

    cut, notes = _ranked_alike([replace(row, split=splits[row.number]) for row in rows])
    return Cut(cut, (*lines, *notes))


def _joining(row: OwnRow, elements: RowElements, labels: bool) -> dict[str, str]:
    """Returns what joins a row with others: hash -> how a message calls it."""
    found: dict[str, str] = {}
    for place, (side, digests) in enumerate(zip(row.sides, elements, strict=False)):
        text, *media = digests
        if text and not (labels and place):
            found[f"text {text}"] = f"the text {shown(side.text)}"
        found |= {
            f"media {digest}": f"what {shown(name)} shows"
            for digest, name in zip(media, side.media, strict=True)
        }

    if row.concept:
        found[f"concept {row.concept}"] = f"the concept {shown(row.concept)}"
    return found


def _groups(joining: Mapping[int, Iterable[str]]) -> list[list[int]]:
    """Returns the numbers of the rows that hang together."""
    parent: dict[int, int] = {}
    first: dict[str, int] = {}

    def root(number: int) -> int:
        while (above := parent[number]) != number:
            # Each step halves the way, which would else grow with the number of rows.
            parent[number] = number = parent[above]
        return number

    for number, elements in joining.items():
        parent[number] = number
        for element in elements:
            parent[root(number)] = root(first.setdefault(element, number))

    groups: dict[int, list[int]] = defaultdict(list)
    for number in joining:
        groups[root(number)].append(number)
    return list(groups.values())


def _splits(
    groups: Iterable[Sequence[int]],
    joining: Mapping[int, Iterable[str]],
    percent: Mapping[str, int],
) -> dict[int, str]:
    """Returns number of a row -> its split."""
    num_rows = len(joining)
    # What is trained on takes the rest, since it is the largest.
    rest = "train" if "train" in percent else max(percent, key=lambda split: percent[split])
    others = {split: share * num_rows / 100 for split, share in percent.items() if split != rest}

    # One large group would make up a whole split, or more of it than was asked for.
    most = max(1.0, min(others.values(), default=num_rows))
    small = [group for group in groups if len(group) <= most]
    # A hash of what a group shows, whatever the ids and the order of its rows.
    small.sort(
        key=lambda group: min(stable_hash("own/split", e) for n in group for e in joining[n])
    )

    # Where large groups leave too few rows, every split gets less, and none goes without.
    scale = min(1.0, sum(map(len, small)) / (sum(others.values()) or 1))
    splits = dict.fromkeys(joining, rest)
    done, end = 0, 0.0
    remaining = iter(small)
    for split, want in others.items():
        end += scale * want
        # The sum is rounded, not each share, so that every split gets what it can.
        while done < round(end) and (group := next(remaining, None)) is not None:
            splits |= dict.fromkeys(group, split)
            done += len(group)
    return splits


def _lines(
    groups: Iterable[Sequence[int]],
    splits: Mapping[int, str],
    percent: Mapping[str, int],
    num_rows: int,
) -> Iterator[str]:
    """Yields one line for each split: what was asked for, and what it got."""
    num_groups = Counter(splits[group[0]] for group in groups)
    sizes = Counter(splits.values())
    for split, share in percent.items():
        part = 100 * sizes[split] / num_rows
        held = f"{counted(sizes[split], 'row')} in {counted(num_groups[split], 'group')}"
        yield f"split {split}: {held} ({part:.0f} %, {share} % asked for)"


def _why_joined(
    group: Sequence[int],
    rows: Iterable[OwnRow],
    joining: Mapping[int, Mapping[str, str]],
    num_rows: int,
) -> str:
    """Returns a sentence on the largest group: what joins most of its rows, and how to go on."""
    if len(group) < 2:
        return ""

    counts = Counter(element for number in group for element in joining[number])
    # The hash decides among equals, so that the order of the table does not matter.
    element, count = min(counts.items(), key=lambda item: (-item[1], item[0]))
    name = next(joining[number][element] for number in sorted(group) if element in joining[number])

    by_text = " If texts of targets are labels, which all splits share, say --labels."
    return (
        f" One group holds {len(group)} of {counted(num_rows, 'row')} "
        f"({100 * len(group) / num_rows:.0f} %); most of them, {count}, share {name}."
        f"{by_text if element.startswith('text') else ''}"
    )


def _ranked_alike(rows: Iterable[OwnRow]) -> tuple[tuple[OwnRow, ...], list[str]]:
    """Leaves out the negatives of rows for evaluation whose task gives some of them none.

    They would be ranked among few candidates, and the others among all.
    """
    rows = tuple(rows)
    evaluated = [row for row in rows if row.split != "train"]
    without = {row.task for row in evaluated if not row.negatives}
    mixed = {row.number for row in evaluated if row.negatives and row.task in without}
    if not mixed:
        return rows, []

    alike = tuple(replace(row, negatives=()) if row.number in mixed else row for row in rows)
    note = (
        f"{counted(len(mixed), 'row')} for evaluation left without its negatives: other rows of "
        "its task have none, and all are ranked among all candidates."
    )
    return alike, [note]
