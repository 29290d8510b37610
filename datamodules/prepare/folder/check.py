"""Every fault of a table, found before anything is written."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import final

from tqdm import tqdm

from datamodules.prepare.folder.media import content_digest, side_members
from datamodules.prepare.folder.table import OwnRow, OwnSide

_KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")
_CHUNK = 64


@final
@dataclass(frozen=True, slots=True)
class Faults:
    """What is wrong with a table.

    Attributes:
        lines: one sentence for each fault, by row.
        rows: numbers of the rows that have one.
        notices: what is worth a look, and no fault.
    """

    lines: tuple[str, ...]
    rows: frozenset[int]
    notices: tuple[str, ...] = ()


def check_rows(rows: Sequence[OwnRow], media: Path, num_frames: int, workers: int) -> Faults:
    """Looks at every row, and decodes every picture and clip.

    Args:
        rows: of the table.
        media: folder that paths are relative to.
        num_frames: of a clip.
        workers: processes that decode.
    """
    found = [(row.number, fault) for row in rows for fault in row.faults]
    found += _ids(rows) + _names(rows) + _mixed(rows)
    digests: dict[int, tuple[str, str]] = {}
    for number, query, target, faults in _decoded(rows, media, num_frames, workers):
        digests[number] = (query, target)
        found += [(number, fault) for fault in faults]
    overlap, notices = _overlap(rows, digests)
    found = sorted({*found, *overlap})
    lines = tuple(f"row {number}: {fault}" for number, fault in found)
    return Faults(lines, frozenset(number for number, _ in found), notices)


Found = list[tuple[int, str]]


def _ids(rows: Iterable[OwnRow]) -> Found:
    first: dict[str, int] = {}
    found = []
    for row in rows:
        if row.id and not _KEY.fullmatch(row.id):
            found.append(
                (row.number, f"id {row.id!r}: expected 1 to 80 letters, digits, `_` or `-`")
            )
        if row.id and first.setdefault(row.id, row.number) != row.number:
            found.append((row.number, f"id {row.id!r} is that of row {first[row.id]}, too"))
    return found


def _names(rows: Iterable[OwnRow]) -> Found:
    """A candidate's name stands for one vector: it must not have two instructions."""
    known: dict[tuple[str, str], tuple[OwnSide, int]] = {}
    found = []
    for row in rows:
        for side in (*row.positives, *row.negatives):
            same, number = known.setdefault((row.task, side.name), (side, row.number))
            if same != side:
                found.append(
                    (row.number, f"target {side.name!r} has another instruction in row {number}")
                )
    return found


def _mixed(rows: Iterable[OwnRow]) -> Found:
    """In an evaluation task all queries have negatives of their own, or none has."""
    kinds: dict[str, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for row in rows:
        if row.split != "train":
            kinds[row.task][bool(row.negatives)].append(row.number)
    found = []
    for task, kind in kinds.items():
        fewer, more = sorted(kind, key=len)  # without the fewer ones the others are a whole task
        for number in fewer:
            both = f"task {task!r} has queries with negatives and without (row {more[0]})"
            found.append((number, f"{both}: give all of them some, or none"))
    return found


def _overlap(
    rows: Iterable[OwnRow], digests: dict[int, tuple[str, str]]
) -> tuple[Found, tuple[str, ...]]:
    trained: dict[tuple[str, str], int] = {}
    targets: set[str] = set()
    for row in rows:
        if row.split == "train" and row.number in digests:
            trained.setdefault((row.task, digests[row.number][0]), row.number)
            targets.add(digests[row.number][1])
    found, shared = [], 0
    for row in rows:
        if row.split == "train" or row.number not in digests:
            continue
        query, target = digests[row.number]
        if (row.task, query) in trained:
            number = trained[row.task, query]
            found.append((row.number, f"its query is that of row {number}, which is trained on"))
        shared += target in targets and bool(row.positives and row.positives[0].media)
    notice = f"{shared} rows for evaluation have a target with media that is trained on, too."
    return found, (notice,) if shared else ()


def _decoded(
    rows: Sequence[OwnRow], media: Path, num_frames: int, workers: int
) -> Iterator[tuple[int, str, str, list[str]]]:
    look = partial(_look, media, num_frames)
    if workers < 2:
        yield from map(look, tqdm(rows, desc="checking", disable=None))
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        results = pool.map(look, rows, chunksize=_CHUNK)
        yield from tqdm(results, total=len(rows), desc="checking", disable=None)


def _look(media: Path, num_frames: int, row: OwnRow) -> tuple[int, str, str, list[str]]:
    """Row number, digests of its query and its first target, and what could not be read."""
    digests, faults = [], []
    for side in row.sides:
        try:
            members = side_members(media, side.media, "q", num_frames)
            digests.append(content_digest(side.text, members))
        except (ValueError, OSError) as error:
            digests.append(f"unreadable {row.number} {len(digests)}")
            faults.append(str(error))
    return row.number, digests[0], digests[1] if len(digests) > 1 else "", faults
