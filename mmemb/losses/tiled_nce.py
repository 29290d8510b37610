"""InfoNCE in tiles of rows: memory O(tile), the gradient is made on the way (METHOD 6).

A dense loss keeps several (B, N) tensors until backward. Here a tile of rows meets all columns,
leaves its loss and its share of the gradients, and is gone; backward only scales what is there.
`mmemb.losses.nce_sweeps` walks over the tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmemb.losses.nce_sweeps import Embeddings, Problem, sweep


def nce_sum(widths: Sequence[Embeddings], scale: Tensor, problem: Problem) -> Tensor:
    """Sum over this rank's valid rows of their loss, mean over widths, with gradient.

    Args:
        widths: the whole embeddings first; their scores decide about false negatives.
        scale: 1 / tau, 0-d, with gradient or without.
        problem: masks, tiles and what else is no embedding.
    """
    tensors = [x for w in widths for x in (w.query_BD, w.target_ND, w.query_MD)]
    return _TiledNce.apply(problem, scale, *tensors)


@final
class _TiledNce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, problem: Problem, scale: Tensor, *tensors: Tensor | None) -> Tensor:
        # Under autocast the products would be bf16: three digits are too few for s / 0.02.
        with torch.autocast(scale.device.type, enabled=False):
            total, gradients = sweep(problem, scale, tensors, any(ctx.needs_input_grad))
        ctx.gradients = gradients
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError(
                "The tiled loss was differentiated twice; its gradients are used up by the first "
                "backward. Compute the loss again."
            )
        gradients, ctx.gradients = ctx.gradients, None
        return None, *(None if g is None else g.mul_(upstream) for g in gradients)
