"""Collectives: the identity in one process; sums of gradients and ragged rows on two."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmemb.distributed import (
    gather_objects,
    gather_padded,
    gather_ragged,
    gather_rows,
    mean_over_ranks,
    rank_and_world,
    sum_over_ranks,
)
from tests.fixtures.ranks import run_ranks


def test_one_process_is_the_identity() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    assert rank_and_world() == (0, 1)
    assert gather_rows(x) is x
    assert gather_ragged(x) is x
    assert gather_padded(x) is x
    assert gather_objects([1, "a"]) == [1, "a"]
    assert torch.equal(sum_over_ranks(x), x)
    assert not sum_over_ranks(x).requires_grad


def _rows(rank: int) -> tuple[Tensor, Tensor]:
    x = (torch.arange(6.0).reshape(3, 2) + 10 * rank).requires_grad_()
    everything = gather_rows(x)
    # Rank r weighs every gathered row with r + 1: what arrives is the sum over ranks, 3.
    ((rank + 1) * everything.square()).sum().backward()
    return everything.detach(), x.grad / x.detach()


def test_gather_rows_in_rank_order_with_summed_gradients() -> None:
    results = run_ranks(_rows, 2)
    for everything, ratio in results:
        assert everything[:, 0].tolist() == [0, 2, 4, 10, 12, 14]
        assert torch.allclose(ratio[ratio.isfinite()], torch.tensor(2.0 * 3))


def _ragged(rank: int, sizes: list[int]) -> tuple[Tensor, Tensor, list[str]]:
    x = torch.full((sizes[rank], 2), rank)
    return gather_ragged(x), gather_ragged(x > 0), gather_objects([f"r{rank}"] * sizes[rank])


@pytest.mark.parametrize("sizes", [[2, 2], [3, 1], [0, 2], [0, 0], [1, 0, 2]])
def test_gather_ragged(sizes: list[int]) -> None:
    ranks = [rank for rank, size in enumerate(sizes) for _ in range(size)]
    for rows, flags, names in run_ranks(_ragged, len(sizes), sizes):
        assert rows.shape == (sum(sizes), 2)
        assert rows[:, 0].tolist() == ranks
        assert flags[:, 0].tolist() == [rank > 0 for rank in ranks]
        assert names == [f"r{rank}" for rank in ranks]


def _padded(rank: int) -> Tensor:
    return gather_padded(torch.full((2, rank + 1), rank))


def test_gather_padded_fills_up_columns() -> None:
    for rows in run_ranks(_padded, 2):
        assert rows.tolist() == [[0, -1], [0, -1], [1, 1], [1, 1]]


def _unequal(rank: int) -> str:
    with pytest.raises(ValueError, match="between 1 and 2 rows") as caught:
        gather_padded(torch.zeros(rank + 1, 1))
    return str(caught.value)


def test_unequal_rows_are_an_error_on_every_rank() -> None:
    assert len(set(run_ranks(_unequal, 2))) == 1


def _sum(rank: int) -> tuple[Tensor, Tensor]:
    x = torch.tensor([1.0 + rank])
    return sum_over_ranks(x), x


def test_sum_leaves_its_argument_alone() -> None:
    assert [(total.item(), x.item()) for total, x in run_ranks(_sum, 2)] == [(3, 1), (3, 2)]


def _mean(rank: int) -> dict[str, float]:
    values = {"a": torch.tensor(1.0 + rank), "b": torch.tensor(rank, dtype=torch.bfloat16)}
    return {name: mean.item() for name, mean in mean_over_ranks(values).items()}


def test_means_of_scalars_are_those_of_all_ranks() -> None:
    assert run_ranks(_mean, 2) == [{"a": 1.5, "b": 0.5}] * 2


def _fails(rank: int) -> None:
    if rank == 1:
        raise KeyError("the reason")


def test_a_failing_rank_is_reported_with_its_traceback() -> None:
    with pytest.raises(RuntimeError, match="the reason"):
        run_ranks(_fails, 2)
