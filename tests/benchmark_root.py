"""A benchmark root of texts alone, small enough to be written in every test."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmemb.shard_writer import Sample, encode_members, write_folder

TASK = {
    "name": "VOC2007", "meta_task": "I-CLS", "gallery": "g", "metric": "hit@1",
    "origin": "R", "think": False, "seen_answer": False,
}  # fmt: skip


def write_root(
    root: Path,
    names: Sequence[str] = ("a", "b", "c"),
    *,
    relevance: Sequence[Mapping[str, Any]] = ({"a": 1.0}, {"b": 1.0}),
    lists: Sequence[Any] | None = None,
    query_meta: Mapping[str, str] | None = None,
    candidate_meta: Mapping[str, str] | None = None,
    task: str = "VOC2007",
    **fields: Any,
) -> Path:
    """One task with a query for each entry of `relevance`.

    Args:
        root: where it goes.
        names: of the candidates of gallery `g`; one more stands in another gallery.
        relevance: name -> grade of each query.
        lists: what lies in each query's `candidates.npy`.
        query_meta: changes what the index says of queries.
        candidate_meta: changes what the index says of candidates.
        task: its name.
        fields: change the JSON of queries.
    """
    candidates = []
    for row, name in enumerate([*names, "elsewhere"]):
        meta = {"gallery": "g" if row < len(names) else "other", "name": name}
        members = encode_members({"json": meta | {"text": name, "instruction": ""}})
        candidates.append(Sample(f"{row:08d}", members, meta | dict(candidate_meta or {})))
    queries = []
    for row, grades in enumerate(relevance):
        meta = {"task": task, "part": "test", "concept": f"c{row}", "fact": f"f{row}"}
        body = {"text": f"q{row}", "instruction": "", "relevance": dict(grades), "answers": []}
        data: dict[str, Any] = {"json": meta | body | fields}
        if lists is not None:
            data["candidates.npy"] = np.array(lists[row])
        meta |= {"gallery": "g"} | dict(query_meta or {})
        queries.append(Sample(f"{row:08d}", encode_members(data), meta))
    for folder, samples in (("queries", queries), ("candidates", candidates)):
        write_folder(root / folder, samples, prefix="x", samples_per_shard=9, fingerprint="x")
    (root / "tasks.json").write_text(json.dumps([TASK | {"name": task}]))
    return root
