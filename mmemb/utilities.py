"""What each depth is worth to each query: the sidecar from which the gate learns (METHOD 7).

Shapes: B queries, R of them with a rationale in some draw, D embedding width.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from mmemb.backbones import Backbone
from mmemb.batches import QueryBatch, SidecarRow
from mmemb.records import DIRECT, FULL, Query, Rationale, Side
from mmemb.retrieval import Galleries


def guard_facts(queries: Sequence[Query], fitted: Collection[str], allow_fitted: bool) -> None:
    """Raises ValueError if a query asks for a fact that the model was fitted on (METHOD 3)."""
    for query in queries:
        if query.fact in fitted and not (query.seen_answer or allow_fitted):
            raise ValueError(
                f"Query {query.key} of task {query.task} asks for {query.fact}, on which this "
                "model was fitted: on fitted facts reasoning looks harmful, and a gate learns the "
                "wrong sign. Score another part, declare `seen_answer: true` in tasks.json where "
                "that is the task's point, or pass --model.allow_fitted true for an audit."
            )


def utility_rows(
    backbone: Backbone,
    batch: QueryBatch,
    galleries: Galleries,
    temperature: float,
    cutoffs: Sequence[int],
) -> list[SidecarRow]:
    """One row per query: what a gate may see, and utility, cost and metrics of every depth.

    Args:
        backbone: the embedder, in eval mode.
        batch: queries with their draws, of which draw 0 is the greedy one, and their probes.
        galleries: candidates, embedded by the same backbone.
        temperature: tau of the softmax over the task's gallery.
        cutoffs: k of the metrics.
    """
    sides = [query.side for query in batch.queries]
    direct_BD = backbone.encode(sides)
    draws = max(1, *map(len, batch.rationales)) if batch.rationales else 1
    direct = _measure(direct_BD, batch.queries, galleries, temperature, cutoffs)
    reasoned = [
        _measure(
            _read(backbone, sides, [_draw(r, k) for r in batch.rationales], direct_BD),
            batch.queries,
            galleries,
            temperature,
            cutoffs,
        )
        for k in range(draws)
    ]
    shape_B3 = galleries.score_shapes(direct_BD, batch.queries, temperature)
    rows = []
    for row, query in enumerate(batch.queries):
        members = {
            "state.npy": direct_BD[row].cpu().numpy().astype(np.float32),
            "json": _row(query, batch.rationales[row], row, direct, reasoned)
            | {"scores": [round(value, 5) for value in shape_B3[row].tolist()]},
        }
        if batch.probes and (probe_H := batch.probes[row]) is not None:
            members["probe.npy"] = probe_H.numpy().astype(np.float16)
        rows.append(SidecarRow(query.key, members, _meta(query)))
    return rows


def embedding_rows(backbone: Backbone, batch: QueryBatch) -> list[SidecarRow]:
    """One row per query: `direct.npy` (D,), and `reasoned.npy` (D,) where it has a rationale."""
    sides = [query.side for query in batch.queries]
    direct_BD = backbone.encode(sides)
    reasoned_BD = _read(backbone, sides, [_draw(r, 0) for r in batch.rationales], direct_BD)
    rows = []
    for row, query in enumerate(batch.queries):
        members = {"direct.npy": direct_BD[row].cpu().numpy().astype(np.float32)}
        if batch.rationales[row]:
            members["reasoned.npy"] = reasoned_BD[row].cpu().numpy().astype(np.float32)
        rows.append(SidecarRow(query.key, members, _meta(query)))
    return rows


def _read(
    backbone: Backbone,
    sides: Sequence[Side],
    rationales: Sequence[Rationale | None],
    direct_BD: Tensor,
) -> Tensor:
    """h_r where there is a rationale, h_d elsewhere."""
    rows = [row for row, rationale in enumerate(rationales) if rationale is not None]
    vectors_BD = direct_BD.clone()
    if rows:
        vectors_BD[rows] = backbone.encode([sides[r] for r in rows], [rationales[r] for r in rows])
    return vectors_BD


def _measure(
    vectors_BD: Tensor,
    queries: Sequence[Query],
    galleries: Galleries,
    temperature: float,
    cutoffs: Sequence[int],
) -> tuple[list[float], list[dict[str, float]]]:
    utility_B = galleries.log_probability(vectors_BD, queries, temperature)
    return utility_B.tolist(), galleries.metrics(vectors_BD, queries, cutoffs)


def _row(
    query: Query,
    rationales: Sequence[Rationale],
    row: int,
    direct: tuple[list[float], list[dict[str, float]]],
    reasoned: Sequence[tuple[list[float], list[dict[str, float]]]],
) -> dict[str, Any]:
    used = reasoned[: max(len(rationales), 1)]
    return {
        "task": query.task,
        "part": query.part,
        "concept": query.concept,
        "eligible": bool(rationales),
        "depths": [DIRECT, FULL],
        "utility": [[direct[0][row]], [utility[row] for utility, _ in used]],
        "cost": [[0], [r.num_tokens for r in rationales] or [0]],
        "metrics": [direct[1][row], used[0][1][row]],
    }


def _meta(query: Query) -> dict[str, str]:
    return {"task": query.task, "part": query.part, "concept": query.concept, "fact": query.fact}


def _draw(rationales: Sequence[Rationale], k: int) -> Rationale | None:
    return rationales[k] if k < len(rationales) else None
