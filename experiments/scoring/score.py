"""`python -m experiments.score`: score files from saved embeddings or rankings, of any model.

Needs the base install alone: no Lightning, no WebDataset, no model. The right answers come from the
data root, vectors or rankings from plain files, one set per task:
`<task>_qry.npy`, `<task>_tgt.npy`, `<task>_names.json`, or `<task>_pred.jsonl`. Vectors are unit
vectors (or `--normalise`), and every name of the gallery has one. Where `<task>_data.json` lies
beside them, they must have been embedded from these data.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from datamodules.data_roots import BenchmarkRoot, read_benchmark
from datamodules.lines import split_lines
from experiments.cli.messages import command
from experiments.scoring.embeddings import check_embedded, read_embeddings
from mmemb.benchmarks.headline import headline_text
from mmemb.benchmarks.score_files import PREDICTIONS, VECTORS, read_scores, task_file, write_scores
from mmemb.benchmarks.task_scores import Mode, TaskScores, score_embeddings, score_predictions
from mmemb.records.file_names import check_apart
from mmemb.records.pairs import EvaluationTask, Query
from mmemb.records.schema import Excerpt, parse_json
from mmemb.storage.folder_kinds import FolderKind, check_kind


@final
@dataclass(frozen=True, slots=True)
class Scored:
    """The scores of a task, its ranked queries, and why the score is partial ("" = it is not)."""

    scores: TaskScores
    queries: list[Query]
    partial: str


@command()
def main(
    arguments: Sequence[str] | None = None, program: str = "python -m experiments.score"
) -> None:
    """Scores every task whose embeddings or rankings were saved."""
    options = _parse(arguments, program)
    check_kind(options.out, "score files", FolderKind.SCORES)
    for root in read_benchmark(options.data_root):
        where = f"{options.data_root / root.path}"
        check_apart((task.name for task in root.tasks), where)
        for task in root.tasks:
            queries = [query for query in root.queries if query.task == task.name]
            scored = _score(options, root, task, queries)
            if scored is None:
                print(f"{task.name:<48} nothing saved in {_saved(options) / root.path}")
                continue

            provenance = {"run": options.model, "revision": root.revision}
            partial = "; ".join(filter(None, (root.left_out, scored.partial)))

            folder = options.out / root.path
            write_scores(folder, scored.scores, scored.queries, provenance, task.meta_task, partial)

            value = scored.scores.means[task.metric]
            print(f"{task.name:<48} {task.metric:<14} {100 * value:6.2f}")
    print(headline_text(read_scores(options.out)))


def _score(
    options: argparse.Namespace, root: BenchmarkRoot, task: EvaluationTask, queries: list[Query]
) -> Scored | None:
    """Scores one task; None if nothing was saved for it."""
    folder = _saved(options) / root.path
    skip = options.on_error == "skip"
    if options.predictions is not None:
        path = task_file(folder, task.name, PREDICTIONS)
        return _of_predictions(path, root, task, queries, options.mode, skip)

    # A single file of the set is a mistake, such as a misspelt name; reading it raises an error.
    if not any(task_file(folder, task.name, end).is_file() for end in VECTORS):
        return None

    # Vectors of other data have the same shape, and would give wrong scores without an error.
    check_embedded(folder, task.name, root.content)
    query_QD, candidate_ND, names = read_embeddings(folder, task.name, options.normalise)

    if len(query_QD) != len(queries):
        raise ValueError(
            f"{folder}: {task.name}_qry.npy holds {len(query_QD)} vectors, the data "
            f"{len(queries)} test queries: expected one each, in the order of the data."
        )

    # Without some wrong candidates a score is too good, with vectors of other names too bad.
    gallery = root.names(task.gallery)
    partial = _what_is_missing(f"{folder}: {task.name}_tgt.npy", gallery, names, skip)
    gallery_names = set(gallery)
    columns = [column for column, name in enumerate(names) if name in gallery_names]
    column_names = [names[column] for column in columns]

    # Without a vector a right candidate has no rank, so its query is left out.
    lost = gallery_names - set(column_names)
    rows = [row for row, query in enumerate(queries) if lost.isdisjoint(query.relevance)]
    if not rows:
        raise ValueError(f"{folder}: no query of {task.name} has vectors of its right candidates.")
    kept = [queries[row] for row in rows]

    scores = score_embeddings(
        task.name, task.metric, kept, query_QD[rows], column_names, candidate_ND[columns],
        own_lists(root, kept, column_names, lost), options.mode,
    )  # fmt: skip
    return Scored(scores, kept, partial)


def _saved(options: argparse.Namespace) -> Path:
    return options.predictions or options.embeddings


def _what_is_missing(where: str, gallery: Sequence[str], names: Sequence[str], skip: bool) -> str:
    """Returns how many candidates lack a vector and how many vectors a candidate; "" = none.

    Raises:
        ValueError: there are some, and `skip` is False.
    """
    problems = []
    for what, required, available in (
        ("candidates have no vector", gallery, set(names)),
        ("vectors are of names that the gallery lacks", names, set(gallery)),
    ):
        if lost := [name for name in required if name not in available]:
            problems.append(f"{len(lost)} of {len(required)} {what} ({lost[0]!r} is the first)")

    if problems and not skip:
        raise ValueError(
            f"{where}: {' and '.join(problems)}. Expected every candidate of the gallery once; "
            "--on-error skip leaves out what cannot be ranked and marks the score partial."
        )
    return "; ".join(problems)


def own_lists(
    root: BenchmarkRoot, queries: Sequence[Query], names: Sequence[str], lost: Collection[str] = ()
) -> list[list[int]] | None:
    """Returns the rows of saved candidates that each query is ranked among; None = all.

    Args:
        root: the data.
        queries: queries of one task.
        names: names of the saved candidates.
        lost: names that may be missing; they are left out of the lists.

    Raises:
        ValueError: a listed candidate has no saved vector, and is not in `lost`.
    """
    # In a task either all queries have lists or none has.
    if not queries or queries[0].candidates is None:
        return None

    row_of = {name: row for row, name in enumerate(names)}
    lists = []

    for query in queries:
        listed = [root.name_of_row[row][1] for row in query.candidates or ()]
        listed = [name for name in listed if name not in lost]

        if missing := [name for name in listed if name not in row_of]:
            raise ValueError(
                f"Candidate {missing[0]!r} of query {query.key} ({query.task}) has no saved vector."
            )
        lists.append([row_of[name] for name in listed])
    return lists


def _of_predictions(
    path: Path,
    root: BenchmarkRoot,
    task: EvaluationTask,
    queries: list[Query],
    mode: Mode,
    skip: bool,
) -> Scored | None:
    """Scores the saved rankings of a task; None if there are none."""
    if not path.is_file():
        return None
    lines = _read_rankings(path, len(queries))

    gallery, num_foreign = set(root.names(task.gallery)), 0
    for query, line in zip(queries, lines, strict=True):
        rows = query.candidates
        among = gallery if rows is None else {root.name_of_row[row][1] for row in rows}
        num_foreign += _has_foreign_names(path, query, line, among, skip)

    ranked = [[str(name) for name in line.prediction] for line in lines]
    scores = score_predictions(task.name, task.metric, queries, ranked, mode)
    partial = f"{num_foreign} rankings name candidates that the query does not have"
    return Scored(scores, queries, partial if num_foreign else "")


@final
class _RankingJson(Excerpt):
    """A line of saved rankings: candidates with the best first; published files add labels."""

    prediction: tuple[str | int, ...]
    label: Any = None


def _read_rankings(path: Path, num_queries: int) -> list[_RankingJson]:
    lines = [
        parse_json(line, _RankingJson, f"{path} is broken: line {number}")
        for number, line in enumerate(split_lines(path.read_bytes()), 1)
        if line.strip()
    ]
    if len(lines) != num_queries:
        raise ValueError(
            f"{path} holds {len(lines)} rankings, the data {num_queries} test queries: expected "
            'one line {"prediction": [names, best first]} each, in the order of the data.'
        )
    return lines


def _has_foreign_names(
    path: Path, query: Query, line: _RankingJson, among: Collection[str], skip: bool
) -> bool:
    """Tells whether a ranking names a candidate that the query cannot choose.

    Raises:
        ValueError: there is such a name, and `skip` is False; or the line is that of another
            query.
    """
    # Published files repeat the labels, by which a line of another query is recognised.
    labels = line.label
    if isinstance(labels, list) and labels and set(map(str, labels)).isdisjoint(query.relevance):
        raise ValueError(
            f"{path}: the line of query {query.key} has the label {labels[0]!r}, the data "
            f"{next(iter(query.relevance))!r}: expected rankings in the order of the data."
        )

    # A misspelt name would be counted as a wrong candidate, and lower the score without an error.
    foreign = [name for name in map(str, line.prediction) if name not in among]
    if foreign and not skip:
        raise ValueError(
            f"{path}: the ranking of query {query.key} names {foreign[0]!r}, which is not among "
            "its candidates: expected names of the gallery, in the order of the data. --on-error "
            "skip takes such names for wrong ones and marks the score partial."
        )
    return bool(foreign)


def _parse(arguments: Sequence[str] | None, program: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=program, description=__doc__)
    parser.add_argument("--data-root", type=Path, required=True, help="e.g. data/mmeb_v2")
    saved = parser.add_mutually_exclusive_group(required=True)
    saved.add_argument("--embeddings", type=Path, help="folder of vectors, laid out as the data")
    saved.add_argument("--predictions", type=Path, help="folder of rankings, laid out as the data")

    parser.add_argument("--out", type=Path, required=True, help="where the score files go")
    parser.add_argument("--model", default="", help="name of the model, kept in the files")
    parser.add_argument("--mode", choices=("correct", "reference"), default="correct")

    parser.add_argument(
        "--normalise", action="store_true", help="scale vectors to length 1; else refuse others"
    )
    parser.add_argument(
        "--on-error",
        choices=("raise", "skip"),
        default="raise",
        help="skip: leave out candidates without a vector, and mark the score partial",
    )
    return parser.parse_args(arguments)
