"""Rows and sides that a writer is asked about: queries, or targets and candidates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, final, get_args

from datamodules.data_roots import TASKS, read_tasks
from datamodules.samples import Row, SampleReader
from mmemb.records.inputs import Side

AskedWhere = Literal["query", "target"]
AskedSides = Literal["query", "target", "both", "none"]


@final
class AskedTasks:
    """The side of one run over shards, and the tasks that it is about.

    A sidecar has the shards of its source, so what is written about queries and about targets goes
    into two folders, by two runs; `sides` may be the same in both.

    Args:
        root: the data set.
        side: `query`: of pairs and queries. `target`: of pairs, and the rows of `candidates`.
        tasks: tasks whose queries are asked about, or None for all; with `target`
            it holds for pairs and candidates.
        sides: task -> the sides that are asked about; of other tasks both.

    Raises:
        ValueError: a side has another name.
    """

    def __init__(
        self,
        root: Path,
        side: AskedWhere,
        tasks: Sequence[str] | None,
        sides: Mapping[str, AskedSides],
    ) -> None:
        if side not in get_args(AskedWhere):
            raise ValueError(f"side {side!r}: expected one of {', '.join(get_args(AskedWhere))}.")
        if wrong := sorted(set(sides.values()) - set(get_args(AskedSides))):
            raise ValueError(f"sides {wrong}: expected some of {', '.join(get_args(AskedSides))}.")
        self.side = side
        self._root, self._tasks, self._sides = root, tasks, sides

    def check(self, rows: Sequence[Row], folders: Sequence[str]) -> None:
        """Raises ValueError if a task is misspelt, or queries are asked for their target."""
        of_target = self.side == "target"
        wrong = [row for row in rows if (_is_query(row) if of_target else _is_candidate(row))]
        if wrong:
            what = "queries, which have no target" if of_target else "candidates, no queries"
            raise ValueError(
                f"{wrong[0].where} is one of {what}, but data.side is {self.side}. Give folders of "
                "pairs and queries for `query`, of pairs and candidates for `target`."
            )

        side_tasks = {row.meta["task"] for row in rows if of_target is _is_pair(row)}
        # Candidates name no task: the tasks that rank their gallery stand for them.
        if of_target and any(map(_is_candidate, rows)):
            side_tasks |= set(self._galleries_of)
        if unknown := sorted(set(self._tasks or ()) - side_tasks):
            raise ValueError(f"Unknown task(s) {unknown}; {folders} have {sorted(side_tasks)}.")

        # One mapping serves the runs over queries and over targets, so tasks of either are known.
        all_tasks = {row.meta["task"] for row in rows if not _is_candidate(row)}
        all_tasks |= set(self._galleries_of)
        if unknown := sorted(set(self._sides) - all_tasks):
            raise ValueError(
                f"sides names unknown task(s) {unknown}; there are {sorted(all_tasks)}."
            )

    def includes(self, row: Row) -> bool:
        """Tells whether a writer is asked about this row, as far as its task decides."""
        # One task that wants a shared gallery is enough for its candidates.
        if _is_candidate(row):
            gallery = row.meta["gallery"]
            rankers = [task for task, name in self._galleries_of.items() if name == gallery]
            return any(map(self._wants, rankers)) or (self._tasks is None and not rankers)
        any_task = self.side == "query" and _is_pair(row)
        return self._wants(row.meta["task"], any_task)

    def read(self, reader: SampleReader, row: Row) -> Side:
        """Reads the one side of a row that a writer may see."""
        if _is_candidate(row):
            return reader.candidate_side(row)
        return reader.query_side(row) if self.side == "query" else reader.target_side(row)

    def _wants(self, task: str, any_task: bool = False) -> bool:
        of_task = any_task or self._tasks is None or task in self._tasks
        return of_task and self._sides.get(task, "both") in (self.side, "both")

    @cached_property
    def _galleries_of(self) -> dict[str, str]:
        """Task -> the gallery that it ranks; empty where a root of pairs declares no task."""
        if not (self._root / TASKS).is_file():
            return {}
        return {task.name: task.gallery for task in read_tasks(self._root)}


def split_of(row: Row) -> str | None:
    """The split of a pair or query; None for a candidate, which stands in every split."""
    return None if _is_candidate(row) else row.meta["split"]


def meta_of(row: Row) -> Mapping[str, str]:
    """The meta of a row; a candidate's split is empty, so that it is drawn as for a test."""
    return {**row.meta, "split": ""} if _is_candidate(row) else row.meta


def _is_pair(row: Row) -> bool:
    return "source" in row.meta


def _is_candidate(row: Row) -> bool:
    return "task" not in row.meta


def _is_query(row: Row) -> bool:
    return not (_is_pair(row) or _is_candidate(row))
