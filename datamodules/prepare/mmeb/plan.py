"""Plan of a task before a picture is read: queries, candidate table, sources.

Layouts fill a `PlanBuilder`; `write` turns the finished plan into shards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np

from datamodules.prepare.mmeb.annotations import Row, find_files, read_rows
from mmemb.benchmarks.mmeb_v2 import Task
from mmemb.records.counted_nouns import counted


@dataclass(frozen=True, slots=True)
class Picture:
    """A file, or a row of the corpus whose table holds the pictures.

    Attributes:
        name: path below the source.
        size: of the file in bytes; 0 where it is not known yet.
        row: of the corpus; -1 = `name` is the picture's own file.
    """

    name: str
    size: int = 0
    row: int = -1


@dataclass(frozen=True, slots=True)
class Media:
    """The pictures of one side.

    Attributes:
        pictures: one image, the frames of a video in order, or nothing.
        moving: whether they are frames.
        problem: why they cannot be had; empty = they can.
    """

    pictures: tuple[Picture, ...] = ()
    moving: bool = False
    problem: str = ""


NO_MEDIA = Media()


@dataclass(frozen=True, slots=True)
class QueryPlan:
    """A query to write.

    Attributes:
        where: file and row of its annotation.
        concept: queries about the same thing share it; the bootstrap draws concepts.
        relevance: candidate name -> grade above 0.
        candidates: rows of the plan's table in stored order, duplicates kept; None = all of them.
    """

    where: str
    concept: str
    instruction: str
    text: str
    media: Media
    relevance: Mapping[str, float]
    answers: tuple[str, ...]
    candidates: np.ndarray | None


@dataclass(frozen=True, slots=True)
class CandidatePlan:
    """A row of the candidate table; `where` names the annotation that it was first seen in."""

    where: str
    name: str
    instruction: str
    text: str
    media: Media


@dataclass(frozen=True, slots=True)
class TaskPlan:
    """All of a task.

    Attributes:
        source: folder of the local copies.
        files: annotations and corpora that were read.
        corpus: files of the table that holds the candidates' pictures, in order of rows.
        twins: pairs of its rows that have the same name, and so must have the same picture.
        shadowed: candidates left out because an earlier one has their name (rule of MMEB-V2).
    """

    task: Task
    source: Path
    files: tuple[Path, ...]
    queries: tuple[QueryPlan, ...]
    candidates: tuple[CandidatePlan, ...]
    corpus: tuple[Path, ...] = ()
    twins: tuple[tuple[int, int], ...] = ()
    shadowed: int = 0

    @property
    def list_lengths(self) -> tuple[int, int] | None:
        """Shortest and longest list of a query's own candidates; None = there are none."""
        lengths = [len(q.candidates) for q in self.queries if q.candidates is not None]
        return (min(lengths), max(lengths)) if lengths else None


@final
class PlanBuilder:
    """Collects a task's rows; the first candidate of a name wins, in the order of arrival."""

    def __init__(self, task: Task, source: Path) -> None:
        self.task, self.source = task, source
        self._queries: list[QueryPlan] = []
        self._candidates: list[CandidatePlan] = []
        self._row_of: dict[str, int] = {}
        self._files: dict[Path, None] = {}
        self._shadowed = 0

    def __contains__(self, name: str) -> bool:
        return name in self._row_of

    def rows(self, columns: Sequence[str], config: str | None = None) -> Iterator[Row]:
        """Yields the annotations of the task's config, or of another one; their files are sources.

        Raises:
            FileNotFoundError: there are none.
            RowError: a row is none.
        """
        files = find_files(self.task, self.source, self.task.config if config is None else config)
        self.read(files)
        yield from read_rows(files, columns)

    def read(self, files: Iterable[Path]) -> None:
        """Remembers files as sources."""
        # A dict keeps the order of files, which the manifest lists.
        self._files |= dict.fromkeys(files)

    def candidate(
        self, where: str, name: str, text: str = "", media: Media = NO_MEDIA, instruction: str = ""
    ) -> None:
        """Adds a candidate unless its name is known.

        Raises:
            ValueError: a known name with other content; see `repeat` for where that may be.
        """
        # Order of arrival gives the row, which is the candidate's identity in shards.
        if name not in self._row_of:
            self._row_of[name] = len(self._candidates)
            self._candidates.append(CandidatePlan(where, name, instruction, text, media))
            return

        first = self._candidates[self._row_of[name]]
        if (first.text, first.media, first.instruction) != (text, media, instruction):
            raise ValueError(
                f"{self.task.name}: candidate {name!r} of {where} has other content than in "
                f"{first.where}; expected one content for one name. Fetch the annotations again."
            )

    def repeat(self, name: str, text: str, instruction: str) -> None:
        """Meets a known picture again: under another caption it is one that the benchmark drops."""
        first = self._candidates[self._row_of[name]]
        self._shadowed += (first.text, first.instruction) != (text, instruction)

    def query(
        self,
        where: str,
        names: Sequence[str],
        relevance: Mapping[str, float],
        *,
        text: str = "",
        media: Media = NO_MEDIA,
        instruction: str | None = None,
        concept: str = "",
        answers: Sequence[str] = (),
    ) -> None:
        """Adds a query.

        Args:
            where: file and row of its annotation.
            names: of its own candidates, which were added before; ignored for a global task.
            relevance: of its right candidates.
            text: of the query.
            media: of the query.
            instruction: None = the registry's.
            concept: what the query is about; empty = its first right candidate.
            answers: texts that name the right candidate.
        """
        # int32 as in the shards: a list may repeat a name, and the repeats are kept.
        rows = np.array([self._row_of[name] for name in names], np.int32)
        query = QueryPlan(
            where=where,
            concept=concept or next(iter(relevance), where),
            instruction=self.task.query_instruction if instruction is None else instruction,
            text=text,
            media=media,
            relevance=dict(relevance),
            answers=tuple(answers),
            candidates=rows if self.task.local else None,
        )

        self._check_positives(query, names)
        self._queries.append(query)

    def finish(
        self, corpus: Sequence[Path] = (), twins: Sequence[tuple[int, int]] = ()
    ) -> TaskPlan:
        """The plan, counts not checked yet."""
        return TaskPlan(
            task=self.task,
            source=self.source,
            files=tuple(self._files),
            queries=tuple(self._queries),
            candidates=tuple(self._candidates),
            corpus=tuple(corpus),
            twins=tuple(twins),
            shadowed=self._shadowed,
        )

    def _check_positives(self, query: QueryPlan, names: Sequence[str]) -> None:
        # A query without its frames is left out, so its candidates may be missing, too.
        if query.media.problem:
            return

        candidates = set(names) if self.task.local else self._row_of
        lost = [name for name in query.relevance if name not in candidates]
        # A query without a right candidate would count as a miss for every model.
        if lost or not query.relevance:
            what = f"{lost[0]!r} is not among" if lost else "none is named of"
            raise ValueError(
                f"{self.task.name}: the right candidate of {query.where} is unknown: {what} its "
                f"{counted(len(candidates), 'candidate')}. Fetch the annotations again; if it "
                "stays, the published data has changed."
            )
