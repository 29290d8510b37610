"""Gradients of micro-batches: bitwise those of retained graphs, and those of one whole batch."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mmemb.losses.ids import PairIds
from mmemb.losses.infonce import contrastive_loss
from mmemb.losses.terms import combine
from mmemb.records.loss_term import LossTerm
from mmemb.training.gradient_cache import GradientCache, embed_cached
from tests.fixtures.ranks import run_ranks

ROWS = 12


class _Tower(nn.Module):
    """Queries, targets, reasoned queries and a next-token sum of one forward pass a row."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(6, 32), nn.GELU(), nn.Dropout(dropout), nn.Linear(32, 8)
        )
        self.head = nn.Linear(8, 5)
        self.calls: list[int] = []

    def rows(self, x_B36: Tensor, rows: Sequence[int]) -> tuple[Tensor, ...]:
        self.calls.append(len(rows))
        x_b36 = x_B36[rows.start : rows.stop]
        query, target, reasoned = (
            nn.functional.normalize(self.body(x_b36[:, n]), dim=1) for n in range(3)
        )
        next_token_b = nn.functional.cross_entropy(
            self.head(reasoned), torch.zeros(len(rows), dtype=torch.long), reduction="none"
        )
        return query, target, reasoned, next_token_b


def losses(parts: tuple[Tensor, ...], first: int) -> Tensor:
    """Direct, reasoning, cross-mode and next-token terms together."""
    query, target, reasoned, next_token_B = parts
    row_B = torch.arange(first, first + len(query))
    ids = PairIds(row_B, row_B, row_B[:, None])
    terms = [
        contrastive_loss(query, target, ids, temperature=0.2),
        contrastive_loss(reasoned, target, ids, temperature=0.2, valid_B=row_B % 3 != 0),
        contrastive_loss(reasoned, query, ids, temperature=0.2),
        LossTerm(next_token_B.sum(), torch.tensor(len(next_token_B))),
    ]
    return torch.stack([combine(term) for term in terms]).sum()


def gradients(
    cache: GradientCache | None,
    *,
    dropout: float = 0.0,
    dtype: torch.dtype = torch.float32,
    rank: int = 0,
    world: int = 1,
) -> tuple[list[Tensor], list[int]]:
    torch.manual_seed(0)
    tower, x_B36 = _Tower(dropout).to(dtype), torch.randn(ROWS, 3, 6, dtype=dtype)
    size = ROWS // world
    mine_B36 = x_B36[rank * size : (rank + 1) * size]
    torch.manual_seed(7 + rank)
    parts = embed_cached(
        lambda rows: tower.rows(mine_B36, rows), [1] * size, cache, tower.parameters
    )
    losses(parts, rank * size).backward()
    found = [parameter.grad for parameter in tower.parameters()]
    if world > 1:
        for gradient in found:
            dist.all_reduce(gradient)
            gradient /= world
    return found, tower.calls


ALL = GradientCache(micro_batch_size=4, retained_gib=1.0)
NONE = GradientCache(micro_batch_size=4)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_checkpoints_equal_retained_graphs_bitwise(dropout: float) -> None:
    kept, calls = gradients(ALL, dropout=dropout)
    assert calls == [4, 4, 4], "nothing is embedded twice"
    again, calls = gradients(NONE, dropout=dropout)
    assert calls == [4] * 5, "all but the last are embedded twice"
    assert all(map(torch.equal, kept, again))
    if dropout:
        assert not all(map(torch.equal, kept, gradients(ALL)[0])), "dropout was at work"


def test_micro_batches_equal_one_batch() -> None:
    whole, calls = gradients(None, dtype=torch.float64)
    assert calls == [ROWS]
    for cache in (NONE, ALL, GradientCache(micro_batch_size=5)):
        for ours, theirs in zip(gradients(cache, dtype=torch.float64)[0], whole, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-10, rtol=1e-10)


def _on_rank(rank: int, cache: GradientCache, dropout: float) -> list[Tensor]:
    return gradients(cache, dropout=dropout, rank=rank, world=2)[0]


def test_two_ranks_equal_one_process() -> None:
    whole, _ = gradients(None)
    small = GradientCache(micro_batch_size=2)
    for found in run_ranks(_on_rank, 2, small, 0.0):
        for ours, theirs in zip(found, whole, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-6)
    with_dropout = [run_ranks(_on_rank, 2, cache, 0.5) for cache in (small, ALL_OF_TWO)]
    for ours, theirs in zip(*with_dropout, strict=True):
        assert all(map(torch.equal, ours, theirs))


ALL_OF_TWO = GradientCache(micro_batch_size=2, retained_gib=1.0)


def test_some_graphs_are_kept_if_there_is_room_for_some() -> None:
    size = 4 * 3 * (6 + 2 * 32 + 8 + 8) * 4  # of a micro-batch, roughly, in bytes
    found, calls = gradients(GradientCache(micro_batch_size=4, retained_gib=2.2 * size / 2**30))
    assert 3 < len(calls) < 5, calls
    assert all(map(torch.equal, found, gradients(ALL)[0]))


def test_the_last_graph_is_gone_before_another_is_made_again() -> None:
    """So keeping it costs no memory: it is needed first."""
    weight, made, alive = torch.ones(3, requires_grad=True), [], []

    def embed(rows: Sequence[int]) -> tuple[Tensor, ...]:
        alive.append([ref() is not None for ref in made])
        hidden = torch.exp(weight * len(rows))  # autograd keeps its output for the backward pass
        made.append(weakref.ref(hidden))
        return (hidden.sum().expand(len(rows), 1) * 1.0,)

    (vectors,) = embed_cached(embed, [1] * 12, NONE)
    vectors.sum().backward()
    assert alive[:3] == [[], [False], [False, False]], "checkpoints keep nothing"
    assert alive[3] == [False] * 3, "the last one was used up"
    assert len(alive) == 5


def test_without_gradient_there_is_nothing_to_cache() -> None:
    tower, x_B36 = _Tower(0.0), torch.randn(ROWS, 3, 6)
    with torch.no_grad():
        embed_cached(lambda rows: tower.rows(x_B36, rows), [1] * ROWS, NONE)
    assert tower.calls == [ROWS]


@given(
    st.lists(st.integers(0, 20), max_size=30),
    st.one_of(st.none(), st.integers(1, 8)),
    st.one_of(st.none(), st.integers(1, 30)),
)
@settings(max_examples=200, deadline=None)
def test_micro_batches_hold_every_row_once(
    costs: list[int], size: int | None, tokens: int | None
) -> None:
    if size is None and tokens is None:
        return
    cache = GradientCache(micro_batch_size=size, micro_batch_tokens=tokens)
    found = cache.micro_batches(costs)
    assert [row for rows in found for row in rows] == list(range(len(costs)))
    for rows in found:
        assert size is None or len(rows) <= size
        assert tokens is None or len(rows) == 1 or sum(costs[row] for row in rows) <= tokens


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({}, "give micro_batch_size"),
        ({"micro_batch_size": 0}, "micro_batch_size 0: expected 1"),
        ({"micro_batch_tokens": -1}, "micro_batch_tokens -1: expected 1"),
        ({"micro_batch_size": 1, "retained_gib": -1.0}, "retained_gib -1.0: expected 0"),
    ],
)
def test_settings_that_cut_nothing_are_refused(settings_: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        GradientCache(**settings_)
