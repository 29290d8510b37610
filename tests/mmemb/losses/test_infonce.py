"""InfoNCE against closed forms, plain loops over its definition, and one process against ranks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mmemb.losses.gathered_pairs import gather_pairs
from mmemb.losses.ids import PairIds
from mmemb.losses.infonce import contrastive_loss, info_nce
from mmemb.losses.terms import combine
from mmemb.losses.tiled_infonce import tiled_info_nce
from mmemb.records.loss_term import LossTerm
from tests.fixtures.ranks import run_ranks


def _ids(*ids: int) -> Tensor:
    return torch.tensor(ids)


def numbered(rows: int) -> PairIds:
    """Each row has a query and a target of its own."""
    row_B = torch.arange(rows)
    return PairIds(row_B, row_B, row_B[:, None])


def _plain(query: Tensor, target: Tensor, ids: PairIds, tau: float, valid: Tensor) -> float:
    """Section 6 of docs/method.md as nested loops, from all rows of one process."""
    q_ids, t_ids = ids.query_B.tolist(), ids.target_N.tolist()
    positives = [[p for p in row if p != -1] for row in ids.positive_BP.tolist()]
    B, s = len(q_ids), (query @ target.T / tau).tolist()
    forth = back = 0.0
    for i in (i for i in range(B) if valid[i]):
        mine = {t_ids[i], *positives[i]}
        right = [i] + [t_ids.index(p) for p in mine - {t_ids[i]} if p in t_ids]
        wrong = sum(math.exp(s[i][n]) for n, t in enumerate(t_ids) if t not in mine and t != -1)
        forth += sum(-math.log(math.exp(s[i][p]) / (math.exp(s[i][p]) + wrong)) for p in right) / (
            len(right)
        )
        wrong = sum(
            math.exp(s[j][i])
            for j in range(B)
            if valid[j] and q_ids[j] != q_ids[i] and t_ids[i] not in {t_ids[j], *positives[j]}
        )
        back += -math.log(math.exp(s[i][i]) / (math.exp(s[i][i]) + wrong))
    return (forth + back) / 2


def random_batch(seed: int, B: int, H: int, P: int) -> tuple[Tensor, Tensor, PairIds]:
    g = torch.Generator().manual_seed(seed)
    target_ids = torch.randint(0, B, (B + H,), generator=g)  # duplicates on purpose
    positives = torch.randint(-1, B, (B, P), generator=g)
    query_ids = torch.randint(0, B + 2, (B,), generator=g)
    ids = PairIds(query_ids, target_ids, torch.cat([target_ids[:B, None], positives], 1))
    query = nn.functional.normalize(torch.randn(B, 5, generator=g).double(), dim=1)
    target = nn.functional.normalize(torch.randn(B + H, 5, generator=g).double(), dim=1)
    return query, target, ids


@given(seed=st.integers(0, 10**6), B=st.integers(1, 7), H=st.integers(0, 3), P=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_equals_the_plain_loops(seed: int, B: int, H: int, P: int) -> None:
    query, target, ids = random_batch(seed, B, H, P)
    valid = torch.rand(B, generator=torch.Generator().manual_seed(seed)) > 0.3
    term = contrastive_loss(query, target, ids, temperature=0.5, valid_B=valid)
    plain = _plain(query, target, ids, 0.5, valid)
    assert term.count == valid.sum()
    assert term.sum.item() == pytest.approx(plain, abs=1e-9)
    tiled = tiled_info_nce(gather_pairs(query, target, ids, valid), 0.5, tile=2)
    assert tiled.item() == pytest.approx(plain, abs=1e-9)


@given(seed=st.integers(0, 10**6), B=st.integers(2, 6))
@settings(max_examples=25, deadline=None)
def test_rows_may_come_in_any_order(seed: int, B: int) -> None:
    query, target, ids = random_batch(seed, B, 0, 2)
    order = torch.randperm(B, generator=torch.Generator().manual_seed(seed))
    # Without repeats: of two columns with one id the first one is the positive.
    ids = replace(ids, target_N=torch.arange(B) + 100)
    shuffled = PairIds(ids.query_B[order], ids.target_N[order], ids.positive_BP[order])
    one = contrastive_loss(query, target, ids, temperature=0.2).sum
    other = contrastive_loss(query[order], target[order], shuffled, temperature=0.2).sum
    assert torch.allclose(one, other)


@pytest.mark.parametrize("symmetric", [True, False])
def test_zero_embeddings_give_log_n(symmetric: bool) -> None:
    zeros = torch.zeros(8, 4)
    term = contrastive_loss(zeros, zeros, numbered(8), temperature=0.05, symmetric=symmetric)
    assert combine(term).item() == pytest.approx(math.log(8), abs=1e-6)


def test_hard_negatives_are_columns_only() -> None:
    ids = replace(numbered(4), target_N=_ids(0, 1, 2, 3, 7, 8, -1))  # the last is padding
    term = contrastive_loss(torch.zeros(4, 3), torch.zeros(7, 3), ids, temperature=1.0)
    assert combine(term).item() == pytest.approx((math.log(6) + math.log(4)) / 2, abs=1e-6)


def test_two_positives_are_averaged() -> None:
    target = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    ids = PairIds(_ids(0), _ids(1, 2, 3), torch.tensor([[1, 2]]))
    term = contrastive_loss(target[:1], target, ids, temperature=1.0, symmetric=False)
    near, far = math.log(1 + math.exp(-1)), math.log(2)
    assert term.sum.item() == pytest.approx((near + far) / 2, abs=1e-6)


def test_invalid_rows_neither_count_nor_repel_but_their_targets_do() -> None:
    query, target = torch.zeros(3, 2), torch.zeros(3, 2)
    query[2] = torch.nan  # a row that does not reason may hold anything
    query.requires_grad_()
    term = contrastive_loss(
        query,
        target.requires_grad_(),
        numbered(3),
        temperature=1.0,
        valid_B=torch.tensor([True, True, False]),
    )
    loss = combine(term)
    loss.backward()
    assert loss.item() == pytest.approx((math.log(3) + math.log(2)) / 2, abs=1e-6)
    assert query.grad.isfinite().all()
    assert target.grad.isfinite().all()


def test_no_valid_row_is_zero_and_joins_the_graph() -> None:
    query = torch.randn(2, 3, requires_grad=True)
    term = contrastive_loss(
        query,
        torch.randn(2, 3),
        numbered(2),
        temperature=0.1,
        valid_B=torch.zeros(2, dtype=torch.bool),
    )
    loss = combine(term)
    loss.backward()
    assert loss.item() == 0
    assert query.grad.abs().sum() == 0


def test_a_row_without_negatives_costs_nothing() -> None:
    query = torch.randn(1, 3, requires_grad=True)
    term = contrastive_loss(query, torch.randn(1, 3), numbered(1), temperature=0.01)
    term.sum.backward()
    assert term.sum.item() == 0
    assert query.grad.isfinite().all()


def test_autocast_and_half_precision_are_scored_in_fp32() -> None:
    query, target, ids = random_batch(0, 6, 0, 1)
    query, target = query.float(), target.float()
    plain = contrastive_loss(query, target, ids, temperature=0.02).sum
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert contrastive_loss(query, target, ids, temperature=0.02).sum == plain
    half = contrastive_loss(query.bfloat16(), target.bfloat16(), ids, temperature=0.02).sum
    assert half.dtype == torch.float32


@pytest.mark.parametrize("sum_of", [info_nce, tiled_info_nce])
@pytest.mark.parametrize("symmetric", [True, False])
def test_gathered_columns_equal_the_whole(sum_of: Callable[..., Tensor], symmetric: bool) -> None:
    query, target, ids = random_batch(3, 6, 2, 2)
    pairs = gather_pairs(query, target, ids, torch.arange(6) != 1, symmetric)
    whole = sum_of(pairs, 0.1, 0.2, (3,))
    parts = [
        sum_of(replace(pairs, query_BD=query[rows], rows=rows), 0.1, 0.2, (3,))
        for rows in (slice(0, 3), slice(3, 6))
    ]
    assert torch.allclose(whole, parts[0] + parts[1])


ROWS, HARD = 12, 6
VALID = {
    "equal": [True] * ROWS,
    "uneven": [True] * 6 + [True, False, True, True, False, False],
    "one rank has none": [True, True, False, True] + [False] * 8,
    "none": [False] * ROWS,
}


def _gradients(rank: int, case: str, world: int) -> list[Tensor]:
    """Gradients of towers and temperature as DDP would leave them: averaged over ranks."""
    torch.manual_seed(0)
    towers = nn.ModuleList([nn.Linear(6, 4), nn.Linear(6, 4)])
    log_temperature = nn.Parameter(torch.tensor(-1.0))
    x_query, x_target = torch.randn(ROWS, 6), torch.randn(ROWS, 6)
    negatives = torch.randn(HARD, 6)
    target_ids = torch.tensor([0, 1, 2, 3, 4, 2, 6, 7, 8, 1, 10, 11])  # some on several ranks
    positives = torch.full((ROWS, 2), -1)
    positives[:, 0], positives[1, 1] = target_ids, 8
    mine = slice(rank * ROWS // world, (rank + 1) * ROWS // world)
    hard = slice(rank * HARD // world, (rank + 1) * HARD // world)
    # Ranks differ in P: what pads rows on one rank must not matter on another.
    own_positives = positives[mine] if rank == 0 else positives[mine, :1]
    query_ids = torch.tensor([0, 1, 2, 3, 4, 5, 6, 6, 8, 9, 10, 11])
    columns = torch.cat([target_ids[mine], torch.arange(20, 20 + HARD)[hard]])
    embed = [lambda x, t=tower: nn.functional.normalize(t(x), dim=1) for tower in towers]
    term = contrastive_loss(
        embed[0](x_query[mine]),
        torch.cat([embed[1](x_target[mine]), embed[1](negatives[hard])]),
        PairIds(query_ids[mine], columns, own_positives),
        temperature=log_temperature.exp(),
        valid_B=torch.tensor(VALID[case])[mine],
    )
    combine(term).backward()
    gradients = [p.grad for p in (*towers.parameters(), log_temperature)]
    if world > 1:
        for gradient in gradients:
            dist.all_reduce(gradient)
            gradient /= world
    return gradients


def _both_ways(rank: int, case: str, world: int) -> list[list[Tensor]]:
    """Gradients of the dense loss, and those of its tiles."""
    dense = _gradients(rank, case, world)
    with mock.patch("mmemb.losses.infonce.DENSE_SCORES", 0):
        return [dense, _gradients(rank, case, world)]


@pytest.mark.parametrize(
    ("case", "world"),
    [
        *((case, 2) for case in ("equal", "uneven", "none")),
        ("uneven", 3),
        pytest.param("one rank has none", 2, marks=pytest.mark.slow),
        pytest.param("one rank has none", 3, marks=pytest.mark.slow),
        *(pytest.param(case, 3, marks=pytest.mark.slow) for case in ("equal", "none")),
    ],
)
def test_ranks_equal_one_process(case: str, world: int) -> None:
    expected = _gradients(0, case, 1)
    for both_ways in run_ranks(_both_ways, world, case, world):
        for gradients in both_ways:
            for ours, theirs in zip(gradients, expected, strict=True):
                assert torch.allclose(ours, theirs, atol=1e-6, rtol=0)
    assert (case == "none") == all(not gradient.any() for gradient in expected)


def test_combine_scales_by_the_world() -> None:
    assert combine(LossTerm(torch.tensor(6.0), torch.tensor(3)), world=2).item() == 4
