"""Values of the reasoning depths: the sidecar from which a gate learns (docs/method.md section 7).

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
from mmemb.records.batches import QueryBatch
from mmemb.records.inputs import Side
from mmemb.records.outputs import SidecarRow
from mmemb.records.pairs import Query
from mmemb.records.rationales import DIRECT, FULL, Rationale, drafts_at
from mmemb.retrieval.galleries import Galleries, Standing


@final
@dataclass(frozen=True, slots=True)
class _Measured:
    """Value of one draft, or of none, to each of B queries."""

    depth_value: list[float]
    metrics: list[dict[str, float]]
    standings: list[Standing]


def guard_facts(queries: Sequence[Query], fitted: Collection[str]) -> None:
    """Raises ValueError if a query asks for a fact that the model was fitted on."""
    for query in queries:
        if query.fact in fitted and not query.seen_answer:
            raise ValueError(
                f"Query {query.key} of task {query.task} asks for {query.fact}, on which this "
                "model was fitted: on trained facts reasoning looks harmful, and a gate learns the "
                "wrong sign. Score another split, declare `seen_answer: true` in tasks.json where "
                "that is the task's point, or pass --model.allow_trained_facts true for an audit."
            )


def depth_value_rows(
    backbone: Backbone,
    batch: QueryBatch,
    galleries: Galleries,
    temperature: float,
    cutoffs: Sequence[int],
    depths: Sequence[str] = (DIRECT, FULL),
    num_draws: int | None = None,
) -> list[SidecarRow]:
    """Returns one row per query: the gate's inputs; value, cost, metrics and rank of each depth.

    Args:
        backbone: the embedder, in eval mode.
        batch: queries with their draws, of which draw 0 is the greedy one, and their prompt states.
        galleries: candidates, embedded by the same backbone.
        temperature: tau of the softmax over the task's gallery.
        cutoffs: k of the metrics.
        depths: names of the depths to measure, `direct` first.
        num_draws: how many drafts of each depth are read at most; None = all.

    Raises:
        ValueError: a query has rationales, but none at one of the depths.
    """
    queries = batch.queries
    sides = [query.side for query in queries]
    direct_BD = backbone.encode(sides)
    drafts = [_drafts(query, pool, depths, num_draws) for query, pool in _pools(batch)]

    def measure(vectors_BD: Tensor) -> _Measured:
        return _measure(vectors_BD, queries, galleries, temperature, cutoffs)

    measured = [[measure(direct_BD)]]
    averaged = [measured[0][0].metrics]
    for depth in depths[1:]:
        # Draft k of all queries is read in one batch; a query with fewer drafts stays direct.
        pools = [by_depth.get(depth, ()) for by_depth in drafts]
        columns = [[_draw(pool, k) for pool in pools] for k in range(max(1, *map(len, pools)))]

        vectors = [_read(backbone, sides, column, direct_BD) for column in columns]
        measured.append([measure(vectors_BD) for vectors_BD in vectors])

        averaged.append(
            galleries.averaged_metrics(vectors, queries, temperature, cutoffs)
            if len(columns) > 1
            else measured[-1][0].metrics
        )

    # The swap test compares the greedy drafts of the last depth, which reason the longest.
    swap_B2 = _swap_test(backbone, queries, columns[0], vectors[0], direct_BD)
    shape_B3 = galleries.score_shapes(direct_BD, queries, temperature)
    return [
        SidecarRow(
            query.key,
            {
                "direct.npy": direct_BD[row].cpu().numpy().astype(np.float32),
                "json": _row(query, drafts[row], row, measured, depths)
                | {"averaged": [depth[row] for depth in averaged]}
                | {"scores": _rounded(shape_B3[row]), "swap": _rounded(swap_B2[row])},
            }
            | _prompt_state_member(batch, row),
            _meta(query),
        )
        for row, query in enumerate(queries)
    ]


def _prompt_state_member(batch: QueryBatch, row: int) -> dict[str, Any]:
    prompt_state_H = batch.prompt_states[row] if batch.prompt_states else None
    return (
        {}
        if prompt_state_H is None
        else {"prompt_state.npy": prompt_state_H.numpy().astype(np.float16)}
    )


def _rounded(values: Tensor) -> list[float]:
    """Returns the values that are numbers: NaN stands for what could not be computed."""
    return [round(value, 5) for value in values.tolist() if value == value]


def _swap_test(
    backbone: Backbone,
    queries: Sequence[Query],
    rationales: Sequence[Rationale | None],
    own_BD: Tensor,
    direct_BD: Tensor,
) -> Tensor:
    """Returns (B, 2) cosines of h_r with that of a placebo and with h_d; NaN where there
    is no such rationale, and outside of split `test`, where the time is saved.

    The placebo is that of the next query in the batch of the same task about another concept.
    A cosine near 1 is the shortcut: the model uses the presence of a rationale, not its content.
    """
    swap_B2 = own_BD.new_full((len(queries), 2), torch.nan)
    # From this batch alone: rows of other batches are not in memory.
    donors = [_next_placebo(row, queries, rationales) for row in range(len(queries))]
    rows = [row for row, donor in enumerate(donors) if donor is not None]

    if rows:
        placebo_RD = backbone.encode([queries[r].side for r in rows], [donors[r] for r in rows])
        swap_B2[rows, 0] = (own_BD[rows] * placebo_RD).sum(1)
        swap_B2[rows, 1] = (own_BD[rows] * direct_BD[rows]).sum(1)

    return swap_B2


def _next_placebo(
    row: int, queries: Sequence[Query], rationales: Sequence[Rationale | None]
) -> Rationale | None:
    query = queries[row]
    if query.split != "test" or rationales[row] is None:
        return None

    # Around the batch from the next row on, so that donors differ from row to row.
    for other in (*range(row + 1, len(queries)), *range(row)):
        alike = queries[other].task == query.task and queries[other].concept != query.concept
        if alike and rationales[other] is not None:
            return rationales[other]
    return None


def embedding_rows(backbone: Backbone, batch: QueryBatch) -> list[SidecarRow]:
    """Returns a row per query: `direct.npy` (D,), and `reasoned.npy` (D,) if it has a rationale."""
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
    """Returns h_r where there is a rationale, h_d elsewhere."""
    # Rows without a rationale are not encoded twice.
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
    pools = [drafts.get(depth, ()) for depth in depths]
    # Metrics and ranks are of the greedy draft alone, as at inference.
    greedy = [draws[0] for draws in measured]
    return {
        "task": query.task,
        "split": query.split,
        "concept": query.concept,
        "eligible": bool(drafts),
        "depths": list(depths),
        "depth_value": [
            [draw.depth_value[row] for draw in draws[: max(len(pool), 1)]]
            for draws, pool in zip(measured, pools, strict=True)
        ],
        "cost": [[draft.num_tokens for draft in pool] or [0] for pool in pools],
        "confidence": [[draft.mean_log_probability for draft in pool] for pool in pools],
        "metrics": [depth.metrics[row] for depth in greedy],
        "ranks": [depth.standings[row].rank for depth in greedy],
        "top": [depth.standings[row].top for depth in greedy],
    }


def _pools(batch: QueryBatch) -> list[tuple[Query, tuple[Rationale, ...]]]:
    pools = batch.rationales or ((),) * len(batch.queries)
    return list(zip(batch.queries, pools, strict=True))


def _drafts(
    query: Query, pool: Sequence[Rationale], depths: Sequence[str], num_draws: int | None
) -> dict[str, tuple[Rationale, ...]]:
    """Returns the query's drafts by depth; none at all where no writer could read it."""
    if not pool:
        return {}

    drafts = {depth: _of_first_writer(drafts_at(depth, pool))[:num_draws] for depth in depths[1:]}
    if missing := [depth for depth, of_depth in drafts.items() if not of_depth]:
        raise ValueError(
            f"Query {query.key} of task {query.task} has rationales, but none at depth "
            f"{missing[0]!r}: give the stage `rationales` a writer that writes at it and make them "
            f"again, or leave it out of `depths`."
        )
    return drafts


def _of_first_writer(drafts: Sequence[Rationale]) -> tuple[Rationale, ...]:
    """Returns the drafts of one writer: at inference, too, one alone writes at a depth."""
    return tuple(draft for draft in drafts if draft.writer == drafts[0].writer)


def _meta(query: Query) -> dict[str, str]:
    return {"task": query.task, "split": query.split, "concept": query.concept, "fact": query.fact}


def _draw(rationales: Sequence[Rationale], k: int) -> Rationale | None:
    return rationales[k] if k < len(rationales) else None
