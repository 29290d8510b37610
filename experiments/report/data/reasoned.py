"""Queries that were embedded without and with a rationale: how their candidates stood each time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

from datamodules.joins import check_join
from datamodules.samples import Row, SampleReader, rows_of
from datamodules.sidecars import RationaleTable
from mmemb.records.pairs import Pair, Query
from mmemb.records.rationales import DIRECT, Rationale
from mmemb.records.schema import SchemaError
from mmemb.records.sidecar_json import DepthValueJson
from mmemb.selection.answers import names_target
from mmemb.storage.run_folder import ExperimentFolder
from mmemb.storage.shard_index import ShardIndex


@final
@dataclass(frozen=True, slots=True)
class Depth:
    """One query at one depth.

    Attributes:
        depth_value: log-probability of the right candidates.
        rank: expected rank of the best right candidate.
        top: name of the best candidate.
    """

    depth_value: float
    rank: float
    top: str


@final
@dataclass(frozen=True, slots=True)
class ReasonedQuery:
    """An eligible query, what the writer wrote about it at the deepest depth, and what it changed.

    Attributes:
        right: names of the right candidates, highest grade first.
        row: where its members lie.
    """

    query: Query
    right: tuple[str, ...]
    rationale: Rationale
    before: Depth
    after: Depth
    row: Row

    @property
    def gain(self) -> float:
        """Log-probability of the right candidates that reasoning adds."""
        return self.after.depth_value - self.before.depth_value

    @property
    def climb(self) -> float:
        """Reciprocal rank that reasoning adds: 1 to 2 is more than 100 to 200."""
        return 1 / self.after.rank - 1 / self.before.rank

    @property
    def names_target(self) -> bool:
        """Tells whether the rationale holds one of the query's answers."""
        return names_target(self.rationale.plain, self.query.answers)

    @property
    def shown_right(self) -> str:
        """Name of the right candidate to show: one that came first, if one did."""
        tops = [top for top in (self.after.top, self.before.top) if top in self.right]
        return (tops or self.right)[0]


def open_stage(experiment: Path, name: str) -> ShardIndex:
    """Opens a sidecar of an experiment; the stage that writes it has the folder's name."""
    try:
        return ShardIndex.open(experiment / name)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{experiment / name} is missing or not finished: run the pipeline's stage `{name}` "
            f"(`python -m experiments.pipeline FILE --from {name}`), then this command again."
        ) from None


def check_covers(source: ShardIndex, sidecar: ShardIndex) -> None:
    """Raises ValueError unless the sidecar is about this source; it may leave out shards."""
    if not check_join(source, sidecar):
        raise not_about(sidecar, str(source.folder))


def not_about(sidecar: ShardIndex, source: str) -> ValueError:
    """Returns the error about a sidecar that was made from other data than these."""
    return ValueError(
        f"{sidecar.folder} says nothing about {source}: it was made from other data. Name the data "
        "root that it was made from with --data-root."
    )


def read_reasoned(experiment: Path, root: Path, split: str = "test") -> tuple[ReasonedQuery, ...]:
    """Returns the eligible queries of a split, in the order of `queries/`.

    Args:
        experiment: e.g. `runs/pocket`, with `rationales/` and `depth_values/`.
        root: the prepared data that the experiment was made from.
        split: of the queries.
    """
    rationales, depth_values = (
        open_stage(experiment, name) for name in ("rationales", "depth_values")
    )
    source = ShardIndex.open(root / "queries")

    # The data root may be another one by now, and rationales may have been made again since.
    check_covers(source, depth_values)
    check_join(rationales, depth_values)

    table = RationaleTable(ExperimentFolder(experiment).rationales, [source])
    rows = [row for row in rows_of(source) if row.meta["split"] == split]
    queries = [
        _reasoned(row, depth_values, table) for row in rows if row.entry.key in depth_values.by_key
    ]
    return tuple(query for query in queries if query is not None)


def _reasoned(row: Row, depth_values: ShardIndex, table: RationaleTable) -> ReasonedQuery | None:
    depths = read_depths(depth_values, row.entry.key)
    if depths is None:
        return None

    # The first rationale of a depth is the greedy one, which the depth values are about.
    deepest = list(depths)[-1]
    rationales = [r for r in table.read_rationales(row) if r.depth == deepest]
    if not rationales:
        raise ValueError(
            f"{row.where} has depth values at depth {deepest!r}, but no such rationale: "
            "rationales/ was made again since. Run the stage `depth_values` again."
        )

    query = read_query(row)
    right = sorted(query.relevance, key=lambda name: -query.relevance[name])
    before, after = depths[DIRECT], depths[deepest]
    return ReasonedQuery(query, tuple(right), rationales[0], before, after, row)


def read_query(row: Row) -> Query:
    """Returns a query with its gallery and without pixels."""
    return replace(SampleReader(pixels=False).query(row), gallery=row.meta["gallery"])


def read_pair(row: Row) -> Pair:
    """Returns a train pair without pixels."""
    return SampleReader(pixels=False).pair(row)


def read_depths(depth_values: ShardIndex, key: str) -> dict[str, Depth] | None:
    """Returns a query's depths by name, direct first, of its greedy draw; None if not eligible."""
    entry = depth_values.by_key[key]
    where = f"{depth_values.folder / entry.shard}, sample {key},"
    again = f"Delete {depth_values.folder} and run the stage `depth_values` again."
    try:
        data = depth_values.read_json(entry, DepthValueJson, again)

        if not (data.ranks and data.top):
            raise ValueError("it lacks ranks and top, so it is older than they are")

        # Draws after the first are samples; ranks and top are those of the greedy one.
        greedy = [draws[0] for draws in data.depth_value]
        columns = zip(greedy, data.ranks, data.top, strict=True)
        depths = dict(zip(data.depths, (Depth(*c) for c in columns), strict=True))

        if len(depths) < 2 or next(iter(depths)) != DIRECT:
            raise ValueError(f"depths {list(depths)}: expected {DIRECT!r} and another one")
        return depths if data.eligible else None

    # It names file and field already, so it is not wrapped a second time.
    except SchemaError:
        raise
    except (IndexError, ValueError) as error:
        raise ValueError(f"{where} is not as `predict` writes it: {error}. {again}") from None
