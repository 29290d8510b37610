"""Vectors of a benchmark's tasks, saved by this project or by other tools, for `score`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor

from mmemb.benchmarks.score_files import DATA, VECTORS, task_file
from mmemb.records.file_names import file_name
from mmemb.records.schema import Schema, parse_json, read_json
from mmemb.retrieval.ranking import check_finite, check_unit


@final
class _DataJson(Schema):
    """A `_data.json`: the hash of the data that were embedded."""

    content: str


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
