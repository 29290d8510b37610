"""`python -m experiments.score`: score files from saved embeddings or rankings, of any model.

Needs the base install alone: no Lightning, no WebDataset, no model. The data root says what is
right; vectors or rankings are read from plain files, one set per task:
`<task>_qry.npy`, `<task>_tgt.npy`, `<task>_names.json`, or `<task>_pred.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from mmemb.benchmark_data import BenchmarkRoot, read_benchmark
from mmemb.benchmark_scores import TaskScores, score_embeddings, score_predictions
from mmemb.headline import headline_text
from mmemb.records import EvaluationTask, Query
from mmemb.score_files import PREDICTIONS, read_embeddings, read_scores, write_scores


def main(arguments: Sequence[str] | None = None) -> None:
    """Scores every task that was saved."""
    options = _parse(arguments)
    try:
        for root in read_benchmark(options.data_root):
            for task in root.tasks:
                asked = [query for query in root.queries if query.task == task.name]
                found = _score(options, root, task, asked)
                if found is None:
                    continue
                provenance = {"run": options.model, "revision": root.revision}
                folder = options.out / root.path
                write_scores(folder, found, asked, provenance, task.meta_task, root.left_out)
                print(f"{task.name:<48} {task.metric:<14} {100 * found.means[task.metric]:6.2f}")
        print(headline_text(read_scores(options.out)))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def _score(
    options: argparse.Namespace, root: BenchmarkRoot, task: EvaluationTask, asked: list[Query]
) -> TaskScores | None:
    """None if nothing was saved for the task."""
    folder = (options.predictions or options.embeddings) / root.path
    if options.predictions is not None:
        path = folder / f"{task.name}{PREDICTIONS}"
        return _of_predictions(path, task, asked, options.mode) if path.is_file() else None
    if not (folder / f"{task.name}_qry.npy").is_file():
        return None
    query_QD, candidate_ND, names = read_embeddings(folder, task.name)
    if len(query_QD) != len(asked):
        raise ValueError(
            f"{folder}: {task.name}_qry.npy holds {len(query_QD)} vectors, the data "
            f"{len(asked)} test queries: expected one each, in the order of the data."
        )
    lists = own_lists(root, asked, names)
    return score_embeddings(
        task.name, task.metric, asked, query_QD, names, candidate_ND, lists, options.mode
    )


def own_lists(
    root: BenchmarkRoot, asked: Sequence[Query], names: Sequence[str]
) -> list[list[int]] | None:
    """Rows of the saved candidates that each query chooses from; None = all."""
    if not asked or asked[0].candidates is None:
        return None
    row_of = {name: row for row, name in enumerate(names)}
    lists = []
    for query in asked:
        listed = [root.name_of_row[row][1] for row in query.candidates or ()]
        if missing := [name for name in listed if name not in row_of]:
            raise ValueError(
                f"Candidate {missing[0]!r} of query {query.key} ({query.task}) has no saved vector."
            )
        lists.append([row_of[name] for name in listed])
    return lists


def _of_predictions(path: Path, task: EvaluationTask, asked: list[Query], mode: str) -> TaskScores:
    try:
        lines = [json.loads(x) for x in path.read_text(encoding="utf-8").splitlines() if x.strip()]
    except ValueError as error:
        raise ValueError(f"{path} is broken: expected a JSON object a line; {error}.") from None
    if len(lines) != len(asked) or not all(
        isinstance(x, dict) and isinstance(x.get("prediction"), list) for x in lines
    ):
        raise ValueError(
            f"{path} holds {len(lines)} rankings, the data {len(asked)} test queries: expected one "
            'line {"prediction": [names, best first]} each, in the order of the data.'
        )
    ranked = [[str(name) for name in line["prediction"]] for line in lines]
    return score_predictions(task.name, task.metric, asked, ranked, mode)  # type: ignore[arg-type]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments.score", description=__doc__)
    parser.add_argument("--data-root", type=Path, required=True, help="e.g. data/mmeb_v2")
    saved = parser.add_mutually_exclusive_group(required=True)
    saved.add_argument("--embeddings", type=Path, help="folder of vectors, laid out as the data")
    saved.add_argument("--predictions", type=Path, help="folder of rankings, laid out as the data")
    parser.add_argument("--out", type=Path, required=True, help="where the score files go")
    parser.add_argument("--model", default="", help="name of the model, kept in the files")
    parser.add_argument("--mode", choices=("correct", "reference"), default="correct")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
