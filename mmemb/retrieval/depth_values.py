"""What each depth is worth to each query: the sidecar from which the gate learns (METHOD 7).

Shapes: B queries, R of them with a rationale in some draw, D embedding width.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from mmemb.backbones import Backbone
from mmemb.records.batches import QueryBatch, SidecarRow
from mmemb.records.inputs import Side
from mmemb.records.pairs import Query
from mmemb.records.rationales import DIRECT, FULL, Rationale, drafts_at
from mmemb.retrieval.galleries import Galleries, Standing


@final
@dataclass(frozen=True, slots=True)
class _Measured:
    """What one draw, or none, is worth to each of B queries."""

    utility: list[float]
    metrics: list[dict[str, float]]
    standings: list[Standing]


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
    depths: Sequence[str] = (DIRECT, FULL),
    num_draws: int | None = None,
) -> list[SidecarRow]:
    """One row per query: what a gate may see; utility, cost, metrics and standing of every depth.

    Args:
        backbone: the embedder, in eval mode.
        batch: queries with their draws, of which draw 0 is the greedy one, and their probes.
        galleries: candidates, embedded by the same backbone.
        temperature: tau of the softmax over the task's gallery.
        cutoffs: k of the metrics.
        depths: names of the depths to measure, `direct` first.
        num_draws: how many drafts of each depth are read at most; None = all.

    Raises:
        ValueError: a query has rationales, but none at one of the depths.
    """
    sides = [query.side for query in batch.queries]
    direct_BD = backbone.encode(sides)
    drafts = [_drafts(query, pool, depths, num_draws) for query, pool in _pools(batch)]

    def measure(vectors_BD: Tensor) -> _Measured:
        return _measure(vectors_BD, batch.queries, galleries, temperature, cutoffs)

    measured = [[measure(direct_BD)]]
    averaged = [measured[0][0].metrics]
    for depth in depths[1:]:
        notes = [found.get(depth, ()) for found in drafts]
        picked = [[_draw(row, k) for row in notes] for k in range(max(1, *map(len, notes)))]
        vectors = [_read(backbone, sides, row, direct_BD) for row in picked]
        measured.append([measure(vectors_BD) for vectors_BD in vectors])
        averaged.append(
            galleries.averaged_metrics(vectors, batch.queries, temperature, cutoffs)
            if len(picked) > 1
            else measured[-1][0].metrics
        )
    deepest, own_BD = picked[0], vectors[0]  # of the last depth, the greedy drafts
    swap_B2 = _swap_test(backbone, batch.queries, deepest, own_BD, direct_BD)
    shape_B3 = galleries.score_shapes(direct_BD, batch.queries, temperature)
    return [
        SidecarRow(
            query.key,
            {
                "state.npy": direct_BD[row].cpu().numpy().astype(np.float32),
                "json": _row(query, drafts[row], row, measured, depths)
                | {"averaged": [depth[row] for depth in averaged]}
                | {"scores": _rounded(shape_B3[row]), "swap": _rounded(swap_B2[row])},
            }
            | _probe_member(batch, row),
            _meta(query),
        )
        for row, query in enumerate(batch.queries)
    ]


def _probe_member(batch: QueryBatch, row: int) -> dict[str, Any]:
    probe_H = batch.probes[row] if batch.probes else None
    return {} if probe_H is None else {"probe.npy": probe_H.numpy().astype(np.float16)}


def _rounded(values: Tensor) -> list[float]:
    """Without what is not known."""
    return [round(value, 5) for value in values.tolist() if value == value]


def _swap_test(
    backbone: Backbone,
    queries: Sequence[Query],
    notes: Sequence[Rationale | None],
    own_BD: Tensor,
    direct_BD: Tensor,
) -> Tensor:
    """(B, 2) cosines of h_r with that of a foreign rationale, and of none (METHOD 10); NaN where
    there is no such rationale, and outside of part `test`, which is not worth the time.

    The foreign one is that of the next query in the batch of the same task about another concept.
    Near 1 is the shortcut: the model reads that there is a rationale, not what it says.
    """
    swap_B2 = own_BD.new_full((len(queries), 2), torch.nan)
    donors = [_next_foreign(row, queries, notes) for row in range(len(queries))]
    rows = [row for row, donor in enumerate(donors) if donor is not None]
    if rows:
        foreign_RD = backbone.encode([queries[r].side for r in rows], [donors[r] for r in rows])
        swap_B2[rows, 0] = (own_BD[rows] * foreign_RD).sum(1)
        swap_B2[rows, 1] = (own_BD[rows] * direct_BD[rows]).sum(1)
    return swap_B2


def _next_foreign(
    row: int, queries: Sequence[Query], notes: Sequence[Rationale | None]
) -> Rationale | None:
    query = queries[row]
    if query.part != "test" or notes[row] is None:
        return None
    for other in (*range(row + 1, len(queries)), *range(row)):
        alike = queries[other].task == query.task and queries[other].concept != query.concept
        if alike and notes[other] is not None:
            return notes[other]
    return None


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
) -> _Measured:
    return _Measured(
        galleries.log_probability(vectors_BD, queries, temperature).tolist(),
        galleries.metrics(vectors_BD, queries, cutoffs),
        galleries.standings(vectors_BD, queries),
    )


def _row(
    query: Query,
    drafts: Mapping[str, Sequence[Rationale]],
    row: int,
    measured: Sequence[Sequence[_Measured]],
    depths: Sequence[str],
) -> dict[str, Any]:
    notes = [drafts.get(depth, ()) for depth in depths]
    first = [draws[0] for draws in measured]  # metrics and standings: of the greedy draw alone
    return {
        "task": query.task,
        "part": query.part,
        "concept": query.concept,
        "eligible": bool(drafts),
        "depths": list(depths),
        "utility": [
            [draw.utility[row] for draw in draws[: max(len(own), 1)]]
            for draws, own in zip(measured, notes, strict=True)
        ],
        "cost": [[draft.num_tokens for draft in own] or [0] for own in notes],
        "confidence": [[draft.mean_log_probability for draft in own] for own in notes],
        "metrics": [depth.metrics[row] for depth in first],
        "ranks": [depth.standings[row].rank for depth in first],
        "top": [depth.standings[row].top for depth in first],
    }


def _pools(batch: QueryBatch) -> list[tuple[Query, tuple[Rationale, ...]]]:
    pools = batch.rationales or ((),) * len(batch.queries)
    return list(zip(batch.queries, pools, strict=True))


def _drafts(
    query: Query, pool: Sequence[Rationale], depths: Sequence[str], num_draws: int | None
) -> dict[str, tuple[Rationale, ...]]:
    """The query's drafts by depth; none at all where no worker could read it."""
    if not pool:
        return {}
    found = {depth: _of_first_worker(drafts_at(depth, pool))[:num_draws] for depth in depths[1:]}
    if missing := [depth for depth, drafts in found.items() if not drafts]:
        raise ValueError(
            f"Query {query.key} of task {query.task} has rationales, but none at depth "
            f"{missing[0]!r}: give the stage `rationales` a worker that writes at it and make them "
            f"again, or leave it out of `depths`."
        )
    return found


def _of_first_worker(drafts: Sequence[Rationale]) -> tuple[Rationale, ...]:
    """At inference one worker writes at a depth, so its draws alone say what the depth is worth."""
    return tuple(draft for draft in drafts if draft.worker == drafts[0].worker)


def _meta(query: Query) -> dict[str, str]:
    return {"task": query.task, "part": query.part, "concept": query.concept, "fact": query.fact}


def _draw(rationales: Sequence[Rationale], k: int) -> Rationale | None:
    return rationales[k] if k < len(rationales) else None
