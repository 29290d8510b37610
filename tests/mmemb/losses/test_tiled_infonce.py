"""Tiles against the dense loss: value and every gradient; memory; what is refused."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmemb.losses.gathered_pairs import GatheredPairs, gather_pairs
from mmemb.losses.infonce import contrastive_loss, info_nce
from mmemb.losses.tiled_infonce import tiled_info_nce
from tests.mmemb.losses.test_infonce import random_batch


@st.composite
def problems(draw: st.DrawFn) -> dict[str, object]:
    """Shapes, masks, widths and tiles of a loss."""
    return {
        "seed": draw(st.integers(0, 10**6)),
        "B": draw(st.integers(1, 9)),
        "H": draw(st.integers(0, 4)),
        "P": draw(st.integers(0, 3)),
        "tile": draw(st.sampled_from([1, 2, 3, 100, None])),
        "symmetric": draw(st.booleans()),
        "margin": draw(st.sampled_from([None, -0.1, 0.0, 0.2])),
        "dims": draw(st.sampled_from([(), (2,), (4, 1)])),
    }


@given(problems())
@settings(max_examples=120, deadline=None)
def test_tiles_equal_the_dense_loss_and_its_gradients(problem: dict) -> None:
    query, target, ids = random_batch(*(problem[name] for name in ("seed", "B", "H", "P")))
    generator = torch.Generator().manual_seed(problem["seed"])
    valid = torch.rand(len(query), generator=generator) > 0.3
    leaves = [query, target, torch.tensor(-1.5, dtype=torch.float64)]
    options = (problem["margin"], problem["dims"])

    def pairs(query_BD: Tensor, target_ND: Tensor) -> GatheredPairs:
        return gather_pairs(query_BD, target_ND, ids, valid, problem["symmetric"])

    tiled = gradients(
        leaves, lambda q, t, tau: tiled_info_nce(pairs(q, t), tau, *options, problem["tile"])
    )
    dense = gradients(leaves, lambda q, t, tau: info_nce(pairs(q, t), tau, *options))
    for a, b in zip(tiled, dense, strict=True):
        assert torch.allclose(a, b, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("problem", [(0.2, ()), (None, (3,)), (None, ())])
@pytest.mark.parametrize("symmetric", [True, False])
def test_tiles_of_one_rank_of_two_have_the_dense_gradients(problem: tuple, symmetric: bool) -> None:
    query, target, ids = random_batch(5, 8, 3, 2)
    pairs = gather_pairs(query, target, ids, torch.arange(8) != 6, symmetric)
    rows = slice(4, 8)

    def loss_of(sum_of, query_MD: Tensor, target_ND: Tensor, tau: Tensor) -> Tensor:
        columns_MD = query_MD if symmetric else None
        mine = replace(
            pairs, query_BD=query_MD[rows], target_ND=target_ND, query_MD=columns_MD, rows=rows
        )
        return sum_of(mine, tau, *problem)

    leaves = [query, target, torch.tensor(-1.5, dtype=torch.float64)]
    tiled = gradients(leaves, partial(loss_of, partial(tiled_info_nce, tile=3)))
    dense = gradients(leaves, partial(loss_of, info_nce))
    for a, b in zip(tiled, dense, strict=True):
        assert torch.allclose(a, b, atol=1e-10, rtol=1e-10)


def test_the_size_decides_which_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    query, target, ids = random_batch(4, 6, 2, 1)
    query, target = query.float(), target.float()

    def loss(scores: int) -> Tensor:
        monkeypatch.setattr("mmemb.losses.infonce.DENSE_SCORES", scores)
        return contrastive_loss(query.clone().requires_grad_(), target, ids, temperature=0.1).sum

    tiled, dense = loss(47), loss(48)
    nodes = [function.name() for function, _ in tiled.grad_fn.next_functions[0][0].next_functions]
    assert any("Tiled" in name for name in nodes)
    torch.testing.assert_close(tiled, dense, atol=2e-5, rtol=2e-5)


def gradients(leaves: list[Tensor], loss_of) -> list[Tensor]:
    query, target, log_temperature = (x.clone().requires_grad_() for x in leaves)
    loss = loss_of(query, target, log_temperature.exp())
    (3 * loss).backward()
    return [loss.detach(), query.grad, target.grad, log_temperature.grad]


def test_the_value_is_the_same_without_gradient() -> None:
    query, target, ids = random_batch(1, 6, 2, 1)
    plain = gather_pairs(query, target, ids)
    with_gradient = tiled_info_nce(gather_pairs(query.clone().requires_grad_(), target, ids), 0.1)
    assert tiled_info_nce(plain, 0.1) == with_gradient


def test_a_second_backward_is_refused() -> None:
    query, target, ids = random_batch(2, 4, 0, 1)
    loss = tiled_info_nce(gather_pairs(query.requires_grad_(), target, ids), 0.1)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="differentiated twice"):
        loss.backward()


@pytest.mark.parametrize("dim", [0, 5, 6])
def test_a_prefix_is_shorter_than_the_embedding(dim: int) -> None:
    query, target, ids = random_batch(3, 4, 0, 1)
    with pytest.raises(ValueError, match=f"Matryoshka prefix {dim}: expected less than .* 5"):
        contrastive_loss(query, target, ids, temperature=0.1, dims=[dim])
