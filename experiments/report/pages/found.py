"""Examples of what a test found and missed, as cards of a page."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import final

from datamodules.samples import Row
from experiments.report.data.pictures import (
    LONGEST_QUERY,
    CandidatePictures,
    Shown,
    shortened,
    shown,
)
from experiments.report.data.reasoned import read_query
from experiments.report.pages.examples import NUM_EXAMPLES, Plate
from experiments.runs.ranked_test import RankedTest
from mmemb.records.hashing import stable_hash
from mmemb.records.ranked_queries import RankedQuery
from mmemb.storage.shard_index import ShardIndex

_PLACES = ("first found", "second", "third")


@final
@dataclass(frozen=True, slots=True)
class FoundCard:
    """A query, its right answer, and what was found."""

    query: RankedQuery
    asked: Shown
    shelf: tuple[Plate, ...]


@final
@dataclass(frozen=True, slots=True)
class FoundExamples:
    """Some hits and some misses of a test, and how many there were.

    Attributes:
        row: name of the test in the first table.
        hits: queries whose right candidate stood first.
        misses: the others.
        num_hits: of all queries of the test.
        num_misses: likewise.
    """

    row: str
    hits: tuple[FoundCard, ...]
    misses: tuple[FoundCard, ...]
    num_hits: int
    num_misses: int


def found_examples(
    row: str, test: RankedTest, root: Path, pictures: CandidatePictures
) -> FoundExamples:
    """Returns examples of a test's hits and misses.

    Args:
        row: name of the test in the first table.
        test: its ranks.
        root: the prepared data that it ranked.
        pictures: of its candidates.

    Raises:
        ValueError: the data are other ones.
    """
    queries = ShardIndex.open(root / "queries")
    hits = [query for query in test.queries if query.rank == 1]
    misses = [query for query in test.queries if query.rank > 1]

    def cards(chosen: Iterable[RankedQuery]) -> tuple[FoundCard, ...]:
        return tuple(_card(query, queries, pictures, test.run) for query in chosen)

    return FoundExamples(
        row,
        hits=cards(chosen_by_hash(hits, NUM_EXAMPLES)),
        misses=cards(chosen_by_hash(misses, NUM_EXAMPLES)),
        num_hits=len(hits),
        num_misses=len(misses),
    )


def chosen_by_hash(queries: Iterable[RankedQuery], count: int) -> list[RankedQuery]:
    """Returns some queries, one of each task in turn, by the hash of their keys.

    Neither a person nor their order in a table has chosen them, and each report shows the same.
    """
    by_task: dict[str, list[RankedQuery]] = defaultdict(list)
    for query in sorted(queries, key=lambda query: stable_hash("example", query.key)):
        by_task[query.task].append(query)

    # A card has few places, so the tasks take turns by their hash, too.
    tasks = sorted(by_task, key=lambda task: stable_hash("example", task))
    turns = zip_longest(*(by_task[task] for task in tasks))
    return [query for query in chain.from_iterable(turns) if query is not None][:count]


def _card(
    query: RankedQuery, queries: ShardIndex, pictures: CandidatePictures, run: Path
) -> FoundCard:
    entry = queries.by_key.get(query.key)
    if entry is None:
        raise ValueError(
            f"{run} ranked query {query.key}, which {queries.folder} does not have: it was made "
            "from other data. Name the data root that it was made from with --data-root, or run "
            "the test again."
        )
    side = read_query(Row(queries, entry)).side
    asked = shown(shortened(side.text, LONGEST_QUERY), queries, entry, "q")

    # The right answer stands alone where it is not among the first that were found.
    plates = [
        Plate(place, pictures.find(query.gallery, name), is_right=name in query.right)
        for place, name in zip(_PLACES, query.found, strict=False)
    ]
    if not any(plate.is_right for plate in plates):
        right = Plate("right answer", pictures.find(query.gallery, query.right[0]), is_right=True)
        plates = [right, *plates[:2]]
    return FoundCard(query, asked, tuple(plates))
