"""Finds every fault of a table before anything is written."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import final

from tqdm import tqdm

from datamodules.prepare.cells import shown
from datamodules.prepare.folder.media import content_digests, locate, side_members
from datamodules.prepare.folder.table import OwnRow, OwnSide
from datamodules.prepare.media_paths import MediaPathError
from mmemb.records.counted_nouns import counted
from mmemb.records.file_names import file_name
from mmemb.records.text import limit_marks

_CHUNK = 64
_MOST_NAMED = 5


@final
@dataclass(frozen=True, slots=True)
class Faults:
    """Faults of a table.

    Attributes:
        lines: one sentence for each fault, by row.
        rows: numbers of the rows with a fault.
        notices: what is worth a look, but no fault.
        groups: topic -> name of its group, for topics of training rows that share a pair.
    """

    lines: tuple[str, ...]
    rows: frozenset[int]
    notices: tuple[str, ...] = ()
    groups: Mapping[str, str] = field(default_factory=dict)


@final
@dataclass(frozen=True, slots=True)
class Content:
    """Hashes of the texts and pictures of a row.

    Attributes:
        sides: of its query and of each right answer: that of its text, and of each of its media.
    """

    sides: tuple[tuple[str, ...], ...]

    @property
    def query(self) -> str:
        """All of the query."""
        return " ".join(self.sides[0])

    @property
    def targets(self) -> tuple[str, ...]:
        """All of each right answer."""
        return tuple(" ".join(digests) for digests in self.sides[1:])

    @property
    def pairs(self) -> tuple[frozenset[str], ...]:
        """The pairs of the row; a pair and its reverse are equal."""
        return tuple(frozenset((self.query, target)) for target in self.targets)


FaultList = list[tuple[int, str]]
"""Faults: number of the row, what is wrong."""


def check_cells(rows: Sequence[OwnRow], media: Path) -> FaultList:
    """Finds the faults of a table's cells and paths; opens no picture and no clip.

    Args:
        rows: of the table.
        media: folder that paths are relative to.
    """
    # A row that cannot be read is left out in any case: it does not count against others.
    whole = [row for row in rows if not row.faults]

    faults = [(row.number, fault) for row in rows for fault in row.faults]
    faults += _ids(rows) + _tasks(whole) + _forms(whole) + _names(whole) + _mixed(whole)

    # The loop may wait for a slow disk, so it shows its progress after two seconds.
    for row in tqdm(rows, desc="looking for media", disable=None, delay=2):
        faults += _paths(row, media)
    # A row that names a broken file twice would otherwise list one fault twice.
    return sorted(set(faults))


def read_contents(
    rows: Sequence[OwnRow], media: Path, num_frames: int, workers: int
) -> tuple[dict[int, Content], FaultList]:
    """Decodes every picture and clip.

    Args:
        rows: of the table.
        media: folder that paths are relative to.
        num_frames: of a clip.
        workers: processes that decode.

    Returns:
        Number of a row -> what it shows, and the media that cannot be read.
    """
    contents: dict[int, Content] = {}
    broken: FaultList = []
    for number, content, faults in _decoded(rows, media, num_frames, workers):
        contents[number] = content
        broken += [(number, fault) for fault in faults]
    return contents, broken


def compare_rows(
    rows: Sequence[OwnRow], contents: Mapping[int, Content], known: FaultList
) -> Faults:
    """Finds rows for evaluation that are trained on, and groups concepts that share a pair.

    Args:
        rows: of the table, with their splits.
        contents: what `read_contents` returned.
        known: all faults that were found before.
    """
    # Rows with broken cells hold placeholders, which must not be compared.
    rows = [row for row in rows if not row.faults]
    overlap = _overlap(rows, contents)
    groups, twins = _groups(rows, contents)
    notices = (*_shared_targets(rows, contents), *_shared_pairs(rows, contents, overlap), *twins)

    listed = sorted({*known, *overlap})
    return Faults(
        tuple(lines_of(listed)), frozenset(number for number, _ in listed), notices, groups
    )


def lines_of(faults: FaultList) -> Iterator[str]:
    """Returns one sentence for each fault."""
    return (f"row {number}: {fault}" for number, fault in faults)


def _ids(rows: Iterable[OwnRow]) -> FaultList:
    first: dict[str, OwnRow] = {}
    faults = []
    for row in rows:
        # Rows are told apart by their keys, which shards hold; an id of its own has its own key.
        twin = first.setdefault(row.key, row)
        if row.id and twin.number != row.number:
            is_same = twin.id == row.id
            what = "is that of" if is_same else f"has the key of {shown(twin.id)} in"
            faults.append((row.number, f"id {shown(row.id)} {what} row {twin.number}, too"))

    return faults


def _tasks(rows: Iterable[OwnRow]) -> FaultList:
    """Finds tasks whose name is too long: the scores of a task become a file of its name."""
    wrong: dict[str, str] = {}
    for task in dict.fromkeys(row.task for row in rows):
        try:
            file_name(task)
        except ValueError:
            wrong[task] = f"task {shown(task)} is too long for the name of a file"

    return [(row.number, wrong[row.task]) for row in rows if row.task in wrong]


def _forms(rows: Iterable[OwnRow]) -> FaultList:
    """Finds names that look equal and are not: two Unicode forms of an accent, other capitals."""
    first: dict[tuple[str, str], tuple[str, int]] = {}
    faults = []
    for row in rows:
        names = [("task", row.task, row.task.strip().casefold()), ("concept", row.concept, "")]
        sides = (*row.positives, *row.negatives)
        names += [("target", side.name, f"{row.task}\0{side.name}") for side in sides]

        # Two spellings of one name would silently become two tasks or two candidates.
        for column, name, seems in names:
            key = (column, unicodedata.normalize("NFC", limit_marks(seems or name)))
            usual, number = first.setdefault(key, (name, row.number))
            if usual != name:
                fault = f"is written otherwise in row {number} ({ascii(usual):.60}): let one name"
                faults.append((row.number, f"{column} {ascii(name):.60} {fault} have one form"))

    return faults


def _paths(row: OwnRow, media: Path) -> FaultList:
    faults = []
    # The lists may differ in length: a flat row has a column for a negative that it does not give.
    for column, side in zip(row.media_columns, row.sides, strict=False):
        # A cell with a fault holds a placeholder path, which would be reported as missing, too.
        if any(fault.startswith(column) for fault in row.faults):
            continue

        for name in side.media:
            try:
                locate(media, name)
            except MediaPathError as error:
                faults.append((row.number, f"{column} {error}"))

    return faults


def _names(rows: Iterable[OwnRow]) -> FaultList:
    """Finds targets of one name with two contents: a name stands for one candidate's vector."""
    first: dict[tuple[str, str], tuple[OwnSide, int]] = {}
    faults = []
    for row in rows:
        for side in (*row.positives, *row.negatives):
            # Sides are compared whole: the same media with another text is another candidate.
            twin, number = first.setdefault((row.task, side.name), (side, row.number))
            if twin != side:
                has = "another instruction" if twin.text == side.text else "other media and text"
                fault = f"target {shown(side.name)} has {has} in row {number}"
                faults.append((row.number, fault))

    return faults


def _mixed(rows: Iterable[OwnRow]) -> FaultList:
    """Finds evaluation tasks in which some queries have negatives of their own, and others none."""
    kinds: dict[str, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for row in rows:
        # Training rows may mix both kinds: negatives are optional there.
        if row.split != "train":
            kinds[row.task][bool(row.negatives)].append(row.number)

    faults = []
    for task, kind in kinds.items():
        # The rarer kind is named: the task is whole once these rows are changed.
        fewer, more = sorted(kind, key=len)
        for number in fewer:
            both = f"task {shown(task)} has queries with negatives and without (row {more[0]})"
            faults.append((number, f"{both}: give all of them some, or none"))

    return faults


def _overlap(rows: Iterable[OwnRow], contents: Mapping[int, Content]) -> FaultList:
    """Finds evaluation rows whose query, or whose pair under another task, is trained on."""
    queries: dict[tuple[str, str], int] = {}
    pairs: dict[tuple[str, str], int] = {}
    for row in rows:
        if row.split == "train":
            content = contents[row.number]
            # The first row that holds the content is named in messages.
            queries.setdefault((row.task, content.query), row.number)
            for target in content.targets[:1]:  # the one that is trained on
                pairs.setdefault((content.query, target), row.number)

    faults = []
    for row in rows:
        if row.split == "train":
            continue

        content = contents[row.number]
        trained = [pairs.get((content.query, target)) for target in content.targets]
        # The query counts within its task only: another task may ask about the same picture.
        if number := queries.get((row.task, content.query)):
            faults.append((row.number, f"its query is that of row {number}, which is trained on"))
        elif number := next(filter(None, trained), None):
            faults.append((row.number, f"its pair is that of row {number}, which is trained on"))

    return faults


def _shared_targets(rows: Iterable[OwnRow], contents: Mapping[int, Content]) -> Iterator[str]:
    """Yields a notice of targets with media that are trained on and evaluated, if there are any."""
    # Only the first right answer of a training row is trained on.
    trained = {
        target
        for row in rows
        if row.split == "train"
        for target in contents[row.number].targets[:1]
    }

    # A label such as a class name is shared on purpose; a picture or a clip may be a leak.
    shared = 0
    for row in rows:
        if row.split != "train" and row.positives and row.positives[0].media:
            shared += contents[row.number].targets[0] in trained

    if shared:
        yield f"{counted(shared, 'row')} for evaluation whose target's media are trained on, too."


def _shared_pairs(
    rows: Iterable[OwnRow], contents: Mapping[int, Content], faults: FaultList
) -> Iterator[str]:
    """Yields a notice of equal pairs in two splits that are no fault, such as reversed ones."""
    # Faults are listed already, and a notice for the same row would repeat them.
    faulty = {number for number, _ in faults}
    places: dict[frozenset[str], dict[str, int]] = defaultdict(dict)
    for row in rows:
        for pair in contents[row.number].pairs:
            if row.number not in faulty:
                places[pair].setdefault(row.split, row.number)

    shared = [place for place in places.values() if len(place) > 1]
    if shared:
        texts = [", ".join(f"row {n} ({split})" for split, n in place.items()) for place in shared]
        yield f"{counted(len(shared), 'pair')} in more than one split: {_some(texts)}."


def _groups(
    rows: Iterable[OwnRow], contents: Mapping[int, Content]
) -> tuple[dict[str, str], list[str]]:
    """Gives one group to topics of training rows that share a pair, also by way of other topics.

    Returns:
        Topic -> name of its group, and at most one notice.
    """
    # A row without a target has its fault already.
    train = [row for row in rows if row.split == "train" and row.positives]
    first: dict[frozenset[str], OwnRow] = {}
    parent: dict[str, str] = {}
    twins = []

    def root(topic: str) -> str:
        while (above := parent.get(topic, topic)) != topic:
            topic = above
        return topic

    for row in train:
        twin = first.setdefault(contents[row.number].pairs[0], row)
        if twin.topic == row.topic:
            continue

        twins.append(f"rows {twin.number} ({twin.topic!r}) and {row.number} ({row.topic!r})")

        # The least name stands for a group, so that the order of the table does not matter.
        low, high = sorted((root(twin.topic), root(row.topic)))
        if low != high:
            parent[high] = low

    notices = [
        f"{counted(len(twins), 'training row')} with a pair of another concept: {_some(twins)}. "
        "Concepts that share a pair go to one fold of the judges."
    ]
    return {topic: root(topic) for topic in parent}, notices if twins else []


def _some(texts: Sequence[str]) -> str:
    """Returns the first few texts in one line."""
    return "; ".join(texts[:_MOST_NAMED]) + ("; ..." if len(texts) > _MOST_NAMED else "")


def _decoded(
    rows: Sequence[OwnRow], media: Path, num_frames: int, workers: int
) -> Iterator[tuple[int, Content, list[str]]]:
    look = partial(_look, media, num_frames)
    # A new process takes seconds to start, so a single worker runs here.
    if workers < 2:
        yield from map(look, tqdm(rows, desc="checking", disable=None))
        return

    # Spawned, not forked: decoders and torch hold threads, which a fork does not copy.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        results = pool.map(look, rows, chunksize=_CHUNK)
        yield from tqdm(results, total=len(rows), desc="checking", disable=None)


def _look(media: Path, num_frames: int, row: OwnRow) -> tuple[int, Content, list[str]]:
    """Returns the row's number, its content, and the media that could not be read."""
    digests: list[tuple[str, ...]] = []
    faults: list[str] = []
    for number, side in enumerate(row.sides):
        try:
            members = side_members(media, side.media, "q", num_frames)
            digests.append(content_digests(side.text, members))
        except (ValueError, OSError) as error:
            # A text of its own, so that two unreadable sides never count as equal.
            digests.append((f"unreadable {row.number} {number}",))
            match error:
                case MediaPathError():
                    pass  # `check_cells` has listed it already
                case OSError():
                    faults.append(f"{row.media_columns[number]}: a file of it cannot be read")
                case _:
                    faults.append(f"{row.media_columns[number]}: {error}")

    return row.number, Content(tuple(digests[: 1 + len(row.positives)])), faults
