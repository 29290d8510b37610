"""InfoNCE against closed forms, a plain loop over METHOD 6, and one process against two ranks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mmemb.losses.infonce import contrastive_loss, info_nce
from mmemb.losses.masks import QueryColumns
from mmemb.losses.terms import LossTerm, combine
from tests.fixtures.ranks import run_ranks


def _ids(*ids: int) -> Tensor:
    return torch.tensor(ids)


def _plain(query: Tensor, target: Tensor, ids: dict[str, Any], tau: float, valid: Tensor) -> float:
    """METHOD 6 as nested loops, from all rows of one process."""
    q_ids, t_ids = ids["query_ids_B"].tolist(), ids["target_ids_N"].tolist()
    positives = [[p for p in row if p != -1] for row in ids["positive_ids_BP"].tolist()]
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


def _random_batch(seed: int, B: int, H: int, P: int) -> tuple[Tensor, Tensor, dict[str, Any]]:
    g = torch.Generator().manual_seed(seed)
    target_ids = torch.randint(0, B, (B + H,), generator=g)  # duplicates on purpose
    positives = torch.randint(-1, B, (B, P), generator=g)
    ids = {
        "query_ids_B": torch.randint(0, B + 2, (B,), generator=g),
        "target_ids_N": target_ids,
        "positive_ids_BP": torch.cat([target_ids[:B, None], positives], 1),
    }
    query = nn.functional.normalize(torch.randn(B, 5, generator=g).double(), dim=1)
    target = nn.functional.normalize(torch.randn(B + H, 5, generator=g).double(), dim=1)
    return query, target, ids


@given(seed=st.integers(0, 10**6), B=st.integers(1, 7), H=st.integers(0, 3), P=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_equals_the_plain_loops(seed: int, B: int, H: int, P: int) -> None:
    query, target, ids = _random_batch(seed, B, H, P)
    valid = torch.rand(B, generator=torch.Generator().manual_seed(seed)) > 0.3
    term = info_nce(query, target, **ids, temperature=0.5, valid_B=valid)
    assert term.count == valid.sum()
    assert term.sum.item() == pytest.approx(_plain(query, target, ids, 0.5, valid), abs=1e-9)


@given(seed=st.integers(0, 10**6), B=st.integers(2, 6))
@settings(max_examples=25, deadline=None)
def test_rows_may_come_in_any_order(seed: int, B: int) -> None:
    query, target, ids = _random_batch(seed, B, 0, 2)
    order = torch.randperm(B, generator=torch.Generator().manual_seed(seed))
    # Without repeats: of two columns with one id the first one is the positive.
    ids["target_ids_N"] = torch.arange(B) + 100
    shuffled = {name: value[order] for name, value in ids.items()}
    one = info_nce(query, target, **ids, temperature=0.2).sum
    assert torch.allclose(
        one, info_nce(query[order], target[order], **shuffled, temperature=0.2).sum
    )


@pytest.mark.parametrize("symmetric", [True, False])
def test_zero_embeddings_give_log_n(symmetric: bool) -> None:
    ids = {"query_ids_B": torch.arange(8), "positive_ids_BP": torch.arange(8)[:, None]}
    term = info_nce(
        torch.zeros(8, 4),
        torch.zeros(8, 4),
        **ids,
        target_ids_N=torch.arange(8),
        temperature=0.05,
        symmetric=symmetric,
    )
    assert combine(term).item() == pytest.approx(math.log(8), abs=1e-6)


def test_hard_negatives_are_columns_only() -> None:
    zeros = torch.zeros(4, 3)
    ids = {"query_ids_B": torch.arange(4), "target_ids_B": torch.arange(4)}
    term = contrastive_loss(
        zeros,
        zeros,
        **ids,
        positive_ids_BP=torch.arange(4)[:, None],
        temperature=1.0,
        negative_HD=torch.zeros(3, 3),
        negative_ids_H=_ids(7, 8, -1),  # the last is padding
    )
    assert combine(term).item() == pytest.approx((math.log(6) + math.log(4)) / 2, abs=1e-6)


def test_two_positives_are_averaged() -> None:
    target = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    term = info_nce(
        target[:1],
        target,
        query_ids_B=_ids(0),
        target_ids_N=_ids(1, 2, 3),
        positive_ids_BP=torch.tensor([[1, 2]]),
        temperature=1.0,
        symmetric=False,
    )
    near, far = math.log(1 + math.exp(-1)), math.log(2)
    assert term.sum.item() == pytest.approx((near + far) / 2, abs=1e-6)


def test_invalid_rows_neither_count_nor_repel_but_their_targets_do() -> None:
    query, target = torch.zeros(3, 2), torch.zeros(3, 2)
    query[2] = torch.nan  # a row that does not reason may hold anything
    query.requires_grad_()
    term = contrastive_loss(
        query,
        target.requires_grad_(),
        query_ids_B=torch.arange(3),
        target_ids_B=torch.arange(3),
        positive_ids_BP=torch.arange(3)[:, None],
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
        query_ids_B=_ids(0, 1),
        target_ids_B=_ids(0, 1),
        positive_ids_BP=torch.tensor([[0], [1]]),
        temperature=0.1,
        valid_B=torch.zeros(2, dtype=torch.bool),
    )
    loss = combine(term)
    loss.backward()
    assert loss.item() == 0
    assert query.grad.abs().sum() == 0


def test_a_row_without_negatives_costs_nothing() -> None:
    query = torch.randn(1, 3, requires_grad=True)
    term = info_nce(
        query,
        torch.randn(1, 3),
        query_ids_B=_ids(0),
        target_ids_N=_ids(0),
        positive_ids_BP=_ids(0)[:, None],
        temperature=0.01,
    )
    term.sum.backward()
    assert term.sum.item() == 0
    assert query.grad.isfinite().all()


def test_autocast_and_half_precision_are_scored_in_fp32() -> None:
    query, target, ids = _random_batch(0, 6, 0, 1)
    query, target = query.float(), target.float()
    plain = info_nce(query, target, **ids, temperature=0.02).sum
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert info_nce(query, target, **ids, temperature=0.02).sum == plain
    half = info_nce(query.bfloat16(), target.bfloat16(), **ids, temperature=0.02).sum
    assert half.dtype == torch.float32


def test_gathered_columns_equal_the_whole() -> None:
    query, target, ids = _random_batch(3, 6, 2, 2)
    whole = info_nce(query, target, **ids, temperature=0.1)
    columns = QueryColumns(
        query, ids["query_ids_B"], ids["positive_ids_BP"], torch.ones(6, dtype=torch.bool)
    )
    parts = [
        info_nce(
            query[start : start + 3],
            target,
            query_ids_B=ids["query_ids_B"][start : start + 3],
            target_ids_N=ids["target_ids_N"],
            positive_ids_BP=ids["positive_ids_BP"][start : start + 3],
            temperature=0.1,
            offset=start,
            columns=columns,
        )
        for start in (0, 3)
    ]
    assert torch.allclose(whole.sum, parts[0].sum + parts[1].sum)


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
    embed = [lambda x, t=tower: nn.functional.normalize(t(x), dim=1) for tower in towers]
    term = contrastive_loss(
        embed[0](x_query[mine]),
        embed[1](x_target[mine]),
        query_ids_B=torch.tensor([0, 1, 2, 3, 4, 5, 6, 6, 8, 9, 10, 11])[mine],
        target_ids_B=target_ids[mine],
        positive_ids_BP=own_positives,
        temperature=log_temperature.exp(),
        valid_B=torch.tensor(VALID[case])[mine],
        negative_HD=embed[1](negatives[hard]),
        negative_ids_H=torch.arange(20, 20 + HARD)[hard],
    )
    combine(term).backward()
    gradients = [p.grad for p in (*towers.parameters(), log_temperature)]
    if world > 1:
        for gradient in gradients:
            dist.all_reduce(gradient)
            gradient /= world
    return gradients


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
    for gradients in run_ranks(_gradients, world, case, world):
        for ours, theirs in zip(gradients, expected, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-6, rtol=0)
    assert (case == "none") == all(not gradient.any() for gradient in expected)


def test_combine_scales_by_the_world() -> None:
    assert combine(LossTerm(torch.tensor(6.0), torch.tensor(3)), world=2).item() == 4
