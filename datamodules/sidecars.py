"""Rationales of a sidecar, joined with their source by key, and the draw of the one to train on.

See docs/method.md section 6.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Literal, TypeVar, final

from torch import Tensor

from datamodules.decode import DecodeError, decode_array
from datamodules.joins import check_join
from datamodules.samples import Row
from mmemb.records.hashing import stable_hash
from mmemb.records.rationales import Rationale, ScoredJson, ScoredRationale
from mmemb.records.row_marks import failure_of, mark_of
from mmemb.records.schema import SchemaError
from mmemb.storage.manifests import IndexEntry, Origin
from mmemb.storage.shard_index import ShardIndex

_Value = TypeVar("_Value")

MAX_DONORS = 16
LOOKED_AT = 256
"""Rows among which some rationale must have been judged, if judged ones are to be drawn."""


@final
class RationaleTable:
    """`rationales/` or `selected/`: rationales by the row that they are about.

    Args:
        folder: the sidecar.
        sources: folders that rows come from; each is covered whole or not at all.

    Raises:
        ValueError: keys differ from a source's, or the sidecar covers a part of a source.
    """

    def __init__(self, folder: Path | str, sources: Iterable[ShardIndex]) -> None:
        self._index = ShardIndex.open(folder)
        self._shards: set[str] = set()
        for source in sources:
            self._shards |= join_whole(source, self._index)

    @property
    def folder(self) -> Path:
        """Folder of the sidecar."""
        return self._index.folder

    def covers(self, row: Row) -> bool:
        """Tells whether a writer was asked about this row."""
        return row.entry.shard in self._shards

    def origins(self, shard: str) -> tuple[Origin, ...]:
        """The sidecar's shard of a source's shard, or nothing if that is not covered."""
        return (self._index.origin(shard),) if shard in self._shards else ()

    def mark(self, row: Row) -> Mapping[str, str]:
        """The mark of a row that was not asked about, or failed; empty for all others."""
        return mark_of(self._index.by_key[row.entry.key].meta) if self.covers(row) else {}

    def read(self, row: Row) -> tuple[ScoredRationale, ...]:
        """All drafts of a row; none if the sidecar does not cover it or it was not asked.

        Raises:
            DecodeError: the row failed when the sidecar was made, or holds no rationales.
        """
        if not self.covers(row):
            return ()
        rows = read_row(self._index, row.entry.key, tuple[ScoredJson, ...])
        return tuple(draft.scored for draft in rows)

    def read_prompt_state(self, row: Row) -> Tensor | None:
        """(H,) hidden state of the writer before it wrote about the row; None if none was kept."""
        if not self.covers(row):
            return None
        entry = self._index.by_key[row.entry.key]
        members = self._index.read(entry, {"prompt_state.npy"})
        where = (
            f"Shard {self._index.folder / entry.shard}, sample {entry.key}, member prompt_state.npy"
        )
        return decode_array(members["prompt_state.npy"], where).float() if members else None

    def read_rationales(self, row: Row) -> tuple[Rationale, ...]:
        """All drafts of a row without the scores of a selector."""
        return tuple(scored.rationale for scored in self.read(row))


def check_row(entry: IndexEntry, where: str) -> None:
    """Raises DecodeError about a sidecar's row that failed when it was made: it holds no data."""
    if reason := failure_of(entry.meta):
        raise DecodeError(
            f"{where}: its row could not be read when the sidecar was made ({reason}).",
            "Repair the row and make the sidecar again, or leave it out with `on_error: skip`.",
        )


def read_row(sidecar: ShardIndex, key: str, kind: type[_Value]) -> _Value:
    """The JSON of a sidecar's row as a value of a type.

    Raises:
        DecodeError: it has none, or another one, or it failed when the sidecar was made.
    """
    entry = sidecar.by_key[key]
    check_row(entry, f"Shard {sidecar.folder / entry.shard}, sample {key}, member json")
    try:
        return sidecar.read_json(entry, kind)
    except SchemaError as error:
        raise DecodeError(error.problem, f"Make {sidecar.folder} again.") from None


def join_whole(source: ShardIndex, sidecar: ShardIndex) -> set[str]:
    """Checks a join as `check_join` does, and that a covered source is covered whole."""
    covered = check_join(source, sidecar)

    # A sidecar may cover several folders, so one of them alone may be absent, but not in part.
    if covered and (missing := sorted(set(source.shard_names) - covered)):
        raise ValueError(
            f"Sidecar {sidecar.folder} does not cover shard {source.folder / missing[0]} "
            f"({len(missing)} in all), though it covers {sorted(covered)[0]}. It was made from "
            f"other data: run the step that makes {sidecar.folder} again."
        )

    return covered


@final
class RationaleDraw:
    """Draws the rationale that a row is trained with, equal for equal (step, key).

    Args:
        table: the drafts.
        rows: the rows trained on, where donors of placebos come from.
        seed: seed of the run.
        sample_by_weight: draw the kept ones by weight; else always the heaviest.
        unselected_fraction: share drawn by count from the whole pool instead.
        placebo_fraction: share that gets a rationale of another concept, same task.
        of: subject of the rationales; draws about queries and targets are independent.

    Raises:
        ValueError: kept ones shall be drawn, but no selector has judged the table.
    """

    def __init__(
        self,
        table: RationaleTable,
        rows: Sequence[Row],
        seed: int,
        sample_by_weight: bool = True,
        unselected_fraction: float = 0.25,
        placebo_fraction: float = 0.0,
        of: Literal["query", "target"] = "query",
    ) -> None:
        for name, share in {"unselected": unselected_fraction, "placebo": placebo_fraction}.items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name}_fraction {share}: expected a share between 0 and 1.")

        self._table, self._seed, self._sample_by_weight = table, seed, sample_by_weight
        # These words are part of every draw's seed: another word would change all draws.
        self._salt = {"query": "rationale", "target": "target"}[of]
        self._unselected_fraction, self._placebo_fraction = unselected_fraction, placebo_fraction

        self._donors: dict[str, list[Row]] = {}
        for row in rows:
            if table.covers(row):
                self._donors.setdefault(row.meta["task"], []).append(row)

        # Draws from the whole pool alone never ask which drafts were kept.
        if unselected_fraction < 1:
            check_judged(table, [row for row in rows if table.covers(row)])

    def draw(self, row: Row, step: int) -> Rationale | None:
        """The rationale of a row at a step; None where the row does not reason."""
        random = Random(stable_hash(self._seed, self._salt, step, row.entry.key))
        use_prior = random.random() < self._unselected_fraction
        # Both numbers are drawn in any case, so that a changed share moves no other draw.
        use_placebo = random.random() < self._placebo_fraction
        rationale = self._pick(self._table.read(row), use_prior, random)
        return self._placebo(row, random) if use_placebo and rationale is not None else rationale

    def _pick(
        self, pool: Sequence[ScoredRationale], use_prior: bool, random: Random
    ) -> Rationale | None:
        # The prior of the test has no selection, so it draws by count.
        if use_prior:
            return _weighted(pool, [scored.rationale.count for scored in pool], random)
        kept = [scored for scored in pool if scored.kept]
        if not self._sample_by_weight and kept:
            return max(kept, key=lambda scored: scored.weight).rationale
        return _weighted(kept, [scored.weight for scored in kept], random)

    def _placebo(self, row: Row, random: Random) -> Rationale | None:
        donors = self._donors.get(row.meta["task"], [])

        # Bounded: a task may hold a single concept, which has no placebo.
        for _ in range(MAX_DONORS):
            donor = random.choice(donors)
            if donor.meta["concept"] == row.meta["concept"]:
                continue
            if rationale := self._pick(self._table.read(donor), True, random):
                return rationale
        return None


def check_judged(table: RationaleTable, rows: Sequence[Row]) -> None:
    """Rejects what stage 1 wrote where a selector's choice is read: nothing in it is kept, so rows
    would train without reasoning and without an error. A selection that keeps nothing passes."""
    drafts: list[ScoredRationale] = []
    for row in rows[:LOOKED_AT]:
        with suppress(DecodeError):  # whether to go on without a broken row is `on_error`'s affair
            drafts += table.read(row)
        if any(scored.scores or scored.kept for scored in drafts):
            return

    # A pool without any draft has nothing to judge, and passes.
    if drafts:
        raise ValueError(
            f"Sidecar {table.folder} holds unjudged rationales (no scores, none kept), of which "
            "none would be trained on. Name the folder that the selector wrote (`selected`), or "
            "set unselected_fraction to 1, which draws from all drafts by count."
        )


def _weighted(
    pool: Sequence[ScoredRationale], weights: Sequence[float], random: Random
) -> Rationale | None:
    if not pool or sum(weights) <= 0:
        return None
    return random.choices(pool, weights)[0].rationale
