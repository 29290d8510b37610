"""Score files of a model, one per task in the published form, with means.

`<folder>/<modality>/<task>_score.json` holds the published keys, then our own: `mode`, `ties`,
`partial`, `provenance`; `<task>_pred.jsonl` the rankings, `<task>_values.json` the headline metric
query by query, which comparisons need. A task's name is written as `file_names.file_name` has it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, final

import numpy as np
from msgspec import Meta
from torch import Tensor

from mmemb.benchmarks.task_scores import TaskScores
from mmemb.records.file_names import file_name, name_of_file
from mmemb.records.pairs import Query
from mmemb.records.schema import Count, Excerpt, Schema, convert, read_json
from mmemb.retrieval.ranking_metrics import CUTOFFS
from mmemb.storage.files import write_atomically
from mmemb.storage.json_files import write_json

METRICS = tuple(
    f"{name}@{k}"
    for name in (
        "hit", "ndcg_linear", "ndcg_exponential", "precision", "recall", "f1", "map", "mrr",
    )
    for k in CUTOFFS
)  # fmt: skip
"""The published keys, in their order."""

_Metric = Annotated[float, Meta(ge=0)]

_SCORE_AGAIN = "Score the task again."

_OURS = ("group", "metric", "mode", "ties", "partial", "provenance")
"""Our own keys."""

VECTORS = ("_qry.npy", "_tgt.npy", "_names.json")
"""Ends of the files of a task's vectors: queries, candidates, and the candidates' names."""

SCORE, PREDICTIONS, VALUES, DATA = "_score.json", "_pred.jsonl", "_values.json", "_data.json"


@final
@dataclass(frozen=True, slots=True)
class ScoreFile:
    """Contents of one task's score file.

    Attributes:
        task: its name.
        scores: the published keys.
        group: meta-task, "" in published files.
        metric: the headline's name, "" in published files.
        mode: `correct` or `reference`.
        ties: queries with near ties, and the headline when they go badly and well.
        partial: why some queries are missing; "" = none is.
        provenance: model, data revision, settings and code, as hashes or names.
    """

    task: str
    scores: Mapping[str, float]
    group: str
    metric: str
    mode: str
    ties: Mapping[str, float]
    partial: str
    provenance: Mapping[str, str]


def task_file(folder: Path, task: str, end: str) -> Path:
    """The file of a task, for any name: `end` is `SCORE`, one of `VECTORS`, and so on."""
    return folder / f"{file_name(task)}{end}"


@final
class _ScoreJson(Excerpt, rename={"hit": "hit@1", "ndcg": "ndcg_linear@5"}):
    """Keys of a score file beside the other metrics; a default stands for one of our own keys,
    which a published file lacks."""

    hit: Annotated[float, Meta(ge=0, le=1)]  # 63.2 is a share in percent
    ndcg: _Metric
    num_pred: Count | None = None
    num_data: Count | None = None
    group: str = ""
    metric: str = ""
    mode: str = "reference"
    ties: dict[str, float] = {}
    partial: str = ""
    provenance: dict[str, str] = {}


def write_scores(
    folder: Path,
    task_scores: TaskScores,
    queries: Sequence[Query],
    provenance: Mapping[str, str],
    group: str = "",
    partial: str = "",
) -> None:
    """Writes the three files of a task; the score file last, so that it vouches for the others."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps(
            {
                "prediction": list(names),
                "label": list(query.relevance),
                "rel_scores": list(query.relevance.values()),
            },
            ensure_ascii=False,
            allow_nan=False,
        )
        for query, names in zip(queries, task_scores.predictions, strict=True)
    ]

    # The others are no longer its own.
    task_file(folder, task_scores.task, SCORE).unlink(missing_ok=True)
    rankings = ("\n".join(lines) + "\n").encode()
    write_atomically(task_file(folder, task_scores.task, PREDICTIONS), rankings)
    values = {
        "metric": task_scores.metric,
        "keys": task_scores.keys,
        "clusters": task_scores.clusters,
    }
    write_json(task_file(folder, task_scores.task, VALUES), values | {"values": task_scores.values})

    count = {"num_pred": len(task_scores.keys), "num_data": len(queries)}
    ties = {
        "queries": task_scores.ties,
        "worst": task_scores.pessimistic,
        "best": task_scores.optimistic,
    }
    ours = {"group": group, "metric": task_scores.metric, "mode": task_scores.mode, "ties": ties}
    ours |= {"partial": partial, "provenance": dict(provenance)}

    # The published keys stand first and in their order, as in published files.
    scores = {name: task_scores.means[name] for name in METRICS}
    write_json(task_file(folder, task_scores.task, SCORE), scores | count | ours)


def scored_under(folder: Path, tasks: Iterable[str], fingerprint: str) -> bool:
    """Tells whether all of these tasks were scored, whole, by a run of this fingerprint."""
    paths = [task_file(folder, task, SCORE) for task in tasks]

    # A run without a fingerprint vouches for nothing, so its tasks are scored again.
    if not fingerprint or not all(path.is_file() for path in paths):
        return False

    files = [read_json(path, _ScoreJson, _SCORE_AGAIN) for path in paths]
    return all(file.provenance.get("run") == fingerprint and not file.partial for file in files)


def write_embeddings(
    folder: Path,
    task: str,
    query_QD: Tensor,
    candidate_ND: Tensor,
    names: Sequence[str],
    content: str = "",
) -> None:
    """Writes vectors of a task for `experiments.scoring.embeddings`, as two fp32 `.npy`.

    Beside them lie the candidates' names, and the hash of the data that were embedded
    (`data_roots.content_of`) where it is known.
    """
    folder.mkdir(parents=True, exist_ok=True)

    # The names go first and come last: without them `read_embeddings` refuses the folder, so that
    # vectors of two runs are never read together.
    of_queries, of_candidates, of_names = (task_file(folder, task, end) for end in VECTORS)
    of_names.unlink(missing_ok=True)

    for path, vectors in ((of_queries, query_QD), (of_candidates, candidate_ND)):
        buffer = io.BytesIO()
        np.save(buffer, vectors.float().numpy(), allow_pickle=False)
        write_atomically(path, buffer.getvalue())

    write_json(of_names, list(names))
    if content:
        write_json(task_file(folder, task, DATA), {"content": content})


def read_scores(folder: Path) -> dict[str, ScoreFile]:
    """Reads all score files below `folder`, published ones too: task -> contents.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a file is broken, or two are of the same task.
    """
    files: dict[str, ScoreFile] = {}
    for path in sorted(folder.rglob(f"*{SCORE}")):
        task = name_of_file(path.name.removesuffix(SCORE))
        data = read_json(path, dict[str, Any], _SCORE_AGAIN)
        where = f"{path} is broken"
        fields = convert(data, _ScoreJson, where, _SCORE_AGAIN)

        # Only task names tell files apart, so two models below one folder would be mixed.
        if task in files:
            raise ValueError(f"{folder} holds two score files of {task}: name one model's folder.")

        metrics = {name: data[name] for name in METRICS if name in data}
        scores: dict[str, float] = convert(metrics, dict[str, _Metric], where, _SCORE_AGAIN)

        counts = {"num_pred": fields.num_pred, "num_data": fields.num_data}
        scores |= {name: count for name, count in counts.items() if count is not None}

        ours = {name: getattr(fields, name) for name in _OURS}
        files[task] = ScoreFile(task, scores, **ours)

    if not files:
        raise FileNotFoundError(
            f"{folder} holds no score file (*{SCORE}): run the evaluation first, or name the "
            "folder that it wrote."
        )
    return files


@final
class Values(Schema):
    """The headline metric of one task, query by query."""

    metric: str
    keys: tuple[str, ...]
    clusters: tuple[str, ...]
    values: tuple[float, ...]


def read_values(folder: Path) -> dict[str, Values]:
    """Task -> values, below `folder`.

    Raises:
        ValueError: a file is broken, or two are of the same task.
    """
    by_task: dict[str, Values] = {}
    for path in sorted(folder.rglob(f"*{VALUES}")):
        task = name_of_file(path.name.removesuffix(VALUES))
        data = read_json(path, Values, _SCORE_AGAIN)

        keys, clusters, values = data.keys, data.clusters, data.values
        if not len(set(keys)) == len(keys) == len(clusters) == len(values):
            raise ValueError(
                f"{path} is broken: expected every query once, with one cluster and one value; "
                f"there are {len(keys)} keys ({len(set(keys))} distinct), {len(clusters)} clusters "
                f"and {len(values)} values. Score the task again."
            )

        if task in by_task:
            raise ValueError(f"{folder} holds two value files of {task}: name one model's folder.")
        by_task[task] = data
    return by_task


def group_means(
    scores: Mapping[str, float], groups: Mapping[str, Iterable[str]]
) -> dict[str, float]:
    """Plain means of tasks, of those groups that are complete.

    >>> group_means({"a": 1.0, "b": 0.0}, {"both": ["a", "b"], "more": ["a", "c"]})
    {'both': 0.5}
    """
    return {
        group: float(np.mean([scores[name] for name in names]))
        for group, names in groups.items()
        if all(name in scores for name in names)
    }
