"""Tiles against the dense loss: value and every gradient; memory; what is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmemb.losses.infonce import info_nce
from tests.fixtures.dense_losses import dense_nce
from tests.mmemb.losses.test_losses import _random_batch


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
    query, target, ids = _random_batch(*(problem[name] for name in ("seed", "B", "H", "P")))
    generator = torch.Generator().manual_seed(problem["seed"])
    shared = {
        **ids,
        "valid_B": torch.rand(len(query), generator=generator) > 0.3,
        "symmetric": problem["symmetric"],
        "false_negative_margin": problem["margin"],
        "dims": problem["dims"],
    }
    leaves = [query, target, torch.tensor(-1.5, dtype=torch.float64)]
    ours, theirs = (
        gradients(leaves, lambda q, t, tau: info_nce(
            q, t, **shared, temperature=tau, tile=problem["tile"]).sum),
        gradients(leaves, lambda q, t, tau: dense_nce(q, t, **shared, temperature=tau)),
    )  # fmt: skip
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-10, rtol=1e-10)


def gradients(leaves: list[Tensor], loss_of) -> list[Tensor]:
    query, target, log_temperature = (x.clone().requires_grad_() for x in leaves)
    loss = loss_of(query, target, log_temperature.exp())
    (3 * loss).backward()
    return [loss.detach(), query.grad, target.grad, log_temperature.grad]


def test_without_gradient_only_the_value_is_made() -> None:
    query, target, ids = _random_batch(1, 6, 2, 1)
    with_gradient = info_nce(query.clone().requires_grad_(), target, **ids, temperature=0.1).sum
    assert info_nce(query, target, **ids, temperature=0.1).sum == with_gradient


def test_a_second_backward_is_refused() -> None:
    query, target, ids = _random_batch(2, 4, 0, 1)
    loss = info_nce(query.requires_grad_(), target, **ids, temperature=0.1).sum
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="differentiated twice"):
        loss.backward()


@pytest.mark.parametrize("dim", [0, 5, 6])
def test_a_prefix_is_shorter_than_the_embedding(dim: int) -> None:
    query, target, ids = _random_batch(3, 4, 0, 1)
    with pytest.raises(ValueError, match=f"Matryoshka prefix {dim}: expected less than .* 5"):
        info_nce(query, target, **ids, temperature=0.1, dims=[dim])
