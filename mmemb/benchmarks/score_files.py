"""Score files of a model, one per task in the published form, with means and a submission.

`<folder>/<modality>/<task>_score.json` holds the published keys, then our own: `mode`, `ties`,
`partial`, `provenance`; `<task>_pred.jsonl` the rankings, `<task>_values.json` the headline metric
query by query, which comparisons need. A task's name is written as `file_names.file_name` has it.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, final

import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from mmemb.benchmarks.task_scores import TaskScores
from mmemb.records.file_names import file_name, name_of_file
from mmemb.records.pairs import Query
from mmemb.records.schema import Count, Excerpt, Schema, convert, parse_json, read_json
from mmemb.retrieval.ranking import check_finite, check_unit
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


@final
class _DataJson(Schema):
    """A `_data.json`: the hash of the data that were embedded."""

    content: str


def write_scores(
    folder: Path,
    found: TaskScores,
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
        for query, names in zip(queries, found.predictions, strict=True)
    ]

    task_file(folder, found.task, SCORE).unlink(missing_ok=True)  # the others are no longer its own
    rankings = ("\n".join(lines) + "\n").encode()
    write_atomically(task_file(folder, found.task, PREDICTIONS), rankings)
    values = {"metric": found.metric, "keys": found.keys, "clusters": found.clusters}
    write_json(task_file(folder, found.task, VALUES), values | {"values": found.values})

    count = {"num_pred": len(found.keys), "num_data": len(queries)}
    ties = {"queries": found.ties, "worst": found.pessimistic, "best": found.optimistic}
    ours = {"group": group, "metric": found.metric, "mode": found.mode, "ties": ties}
    ours |= {"partial": partial, "provenance": dict(provenance)}

    # The published keys stand first and in their order, as in published files.
    scores = {name: found.means[name] for name in METRICS}
    write_json(task_file(folder, found.task, SCORE), scores | count | ours)


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
    """Writes vectors of a task for `read_embeddings`, as two fp32 `.npy`.

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


def check_embedded(folder: Path, task: str, content: str) -> None:
    """Raises ValueError if saved vectors are marked as those of other data; vectors of other tools
    have no mark and pass."""
    path = task_file(folder, task, DATA)
    if not path.is_file():
        return

    embedded = read_json(path, _DataJson).content
    if embedded != content:
        raise ValueError(
            f"{folder}: the vectors of {task} are of other data (content {embedded}) than the data "
            f"root (content {content}), though their numbers are equal: the data were prepared "
            "again. Embed them again, or name the data root that was embedded."
        )


def read_embeddings(
    folder: Path, task: str, normalise: bool = False
) -> tuple[Tensor, Tensor, list[str]]:
    """Queries (Q, D), candidates (N, D) and the candidates' names, each once.

    Args:
        folder: where the files lie.
        task: its name.
        normalise: scales vectors to length 1; without it other lengths are refused.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is broken, the files do not fit each other, a name occurs twice, or a
            vector is zero, not finite or not of length 1.
    """
    paths = [task_file(folder, task, end) for end in VECTORS]
    if missing := [str(path) for path in paths if not path.is_file()]:
        stem = file_name(task)
        raise FileNotFoundError(
            f"{missing[0]} is missing: expected fp32 arrays {stem}_qry.npy (queries in the order "
            f"of the data), {stem}_tgt.npy, and {stem}_names.json, the candidates' names."
        )

    query_QD, candidate_ND = (_read_vectors(path, normalise) for path in paths[:2])

    names = _read_names(paths[2])
    if len(names) != len(candidate_ND) or query_QD.shape[1] != candidate_ND.shape[1]:
        raise ValueError(
            f"{folder}: {len(names)} names, candidates {tuple(candidate_ND.shape)} and queries "
            f"{tuple(query_QD.shape)} of {task} do not fit each other."
        )
    return query_QD, candidate_ND, names


def _read_vectors(path: Path, normalise: bool) -> Tensor:
    try:
        array = np.load(path, allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"{path} is no plain array: {error}.") from None
    if array.ndim != 2 or array.dtype.kind != "f":
        raise ValueError(f"{path}: expected numbers (rows, D), got {array.dtype} {array.shape}.")

    # Scaled in fp64: lengths far from 1 may have no fp32 number, or only a rough one.
    vector_ND = torch.from_numpy(array.astype(np.float64))
    check_finite(vector_ND, f"{path}:")

    # A vector of zeros has no direction: it ties with everything, and nothing can normalise it.
    if len(zeros := (~vector_ND.any(1)).nonzero()[:, 0]):
        raise ValueError(
            f"{path}: {len(zeros)} of {len(vector_ND)} vectors are zero (row {int(zeros[0])} is "
            "the first): expected an embedding for each."
        )
    if not normalise:
        check_unit(vector_ND, f"vectors of {path}")
        return vector_ND.float()

    # By the largest number first, so that no square is out of range.
    vector_ND = vector_ND / vector_ND.abs().amax(1, keepdim=True)
    return (vector_ND / vector_ND.norm(dim=1, keepdim=True)).float()


def _read_names(path: Path) -> list[str]:
    where = f"{path} is no JSON list of names"

    # Names may be written as whole numbers, as page ids are.
    names = list(map(str, parse_json(path.read_bytes(), list[str | int], where)))
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(
            f"{path} names {twice[0]!r} more than once ({len(twice)} such names): expected every "
            "candidate once, with one vector."
        )
    return names


def read_scores(folder: Path) -> dict[str, ScoreFile]:
    """Reads all score files below `folder`, published ones too: task -> contents.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a file is broken, or two are of the same task.
    """
    found: dict[str, ScoreFile] = {}
    for path in sorted(folder.rglob(f"*{SCORE}")):
        task = name_of_file(path.name.removesuffix(SCORE))
        data = read_json(path, dict[str, Any], _SCORE_AGAIN)
        where = f"{path} is broken"
        fields = convert(data, _ScoreJson, where, _SCORE_AGAIN)

        # Only task names tell files apart, so two models below one folder would be mixed.
        if task in found:
            raise ValueError(f"{folder} holds two score files of {task}: name one model's folder.")

        known = {name: data[name] for name in METRICS if name in data}
        scores: dict[str, float] = convert(known, dict[str, _Metric], where, _SCORE_AGAIN)

        counts = {"num_pred": fields.num_pred, "num_data": fields.num_data}
        scores |= {name: count for name, count in counts.items() if count is not None}

        ours = {name: getattr(fields, name) for name in _OURS}
        found[task] = ScoreFile(task, scores, **ours)

    if not found:
        raise FileNotFoundError(
            f"{folder} holds no score file (*{SCORE}): run the evaluation first, or name the "
            "folder that it wrote."
        )
    return found


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
    found: dict[str, Values] = {}
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

        if task in found:
            raise ValueError(f"{folder} holds two value files of {task}: name one model's folder.")
        found[task] = data
    return found


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


def submission(
    found: Mapping[str, ScoreFile], modality_of: Mapping[str, str], metadata: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns a leaderboard's form: metadata, and the published keys by modality and task.

    Raises:
        ValueError: a task is partial or missing.
    """
    if missing := [name for name in modality_of if name not in found]:
        raise ValueError(f"{len(missing)} tasks are missing: {', '.join(missing)}.")

    # A mean over some of the queries is not comparable with those of a leaderboard.
    if partial := [name for name in modality_of if found[name].partial]:
        raise ValueError(f"{len(partial)} tasks are partial: {', '.join(partial)}.")

    metrics: dict[str, dict[str, Any]] = {}
    for name, modality in modality_of.items():
        metrics.setdefault(modality, {})[name] = dict(found[name].scores)
    return {"metadata": dict(metadata), "metrics": metrics}
