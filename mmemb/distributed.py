"""Collectives as plain functions; without a process group every one of them is the identity.

A collective runs on every rank or on none: never call one in a branch that ranks may take
differently. Shapes: B rows of this rank, W ranks, P columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, final

import torch
import torch.distributed as dist
from torch import Tensor, nn

_Item = TypeVar("_Item")


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of ranks.

    >>> rank_and_world()
    (0, 1)
    """
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


@final
class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _all_gather(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # Every rank's loss reads our rows. All-reduce and slice, because gloo has no
        # reduce-scatter; cloned, because a gradient may be shared with other branches.
        rank, world = rank_and_world()
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(world)[rank]


def gather_rows(x: Tensor) -> Tensor:
    """All ranks' rows in rank order, with gradient.

    Args:
        x: (B, ...); the same shape on every rank, and `requires_grad` alike on every rank.

    Returns:
        (W * B, ...). Gradients that ranks send to one row are summed, so that after DDP's average
        they equal those of one process on the whole batch (docs/method.md section 6).
    """
    if rank_and_world()[1] == 1:
        return x
    return _GatherRows.apply(x) if x.requires_grad else _all_gather(x)


def gather_padded(x_BP: Tensor, fill: int = -1) -> Tensor:
    """All ranks' rows, without gradient, where ranks may differ in the number of COLUMNS.

    Args:
        x_BP: (B, P); B is equal on all ranks, P need not be.
        fill: what shorter rows are padded with.

    Returns:
        (W * B, longest P).

    Raises:
        ValueError: on every rank alike, if ranks hold unequal numbers of rows.
    """
    if rank_and_world()[1] == 1:
        return x_BP
    rows, columns = x_BP.shape
    extreme = torch.tensor([rows, -rows, columns], device=x_BP.device)
    dist.all_reduce(extreme, op=dist.ReduceOp.MAX)
    most, least, longest = extreme[0].item(), -extreme[1].item(), int(extreme[2].item())
    if most != least:
        raise ValueError(
            f"ranks hold between {least} and {most} rows: a training batch must have equally many "
            "rows on every rank; mask the surplus with valid_B instead of leaving rows out."
        )
    return _all_gather(nn.functional.pad(x_BP, (0, longest - columns), value=fill))


def gather_ragged(x: Tensor) -> Tensor:
    """All ranks' rows in rank order, without gradient; ranks may hold unequal numbers of rows.

    Args:
        x: (B, ...); everything but B is equal on all ranks, B may be 0.

    Returns:
        (sum of all B, ...).
    """
    if rank_and_world()[1] == 1:
        return x
    x = x.detach()
    sizes = _all_gather(torch.tensor([len(x)], device=x.device)).tolist()
    padded = x.new_zeros((max(sizes), *x.shape[1:]))
    padded[: len(x)] = x
    parts = _all_gather(padded).chunk(len(sizes)) if max(sizes) else ()
    return torch.cat([p[:n] for p, n in zip(parts, sizes, strict=True)]) if parts else x


def gather_objects(items: list[_Item]) -> list[_Item]:
    """All ranks' lists joined in rank order (pickled: for names and keys, not for tensors).

    >>> gather_objects(["fr", "de"])
    ['fr', 'de']
    """
    _, world = rank_and_world()
    if world == 1:
        return list(items)
    parts: list[Any] = [None] * world
    dist.all_gather_object(parts, list(items))
    return [item for part in parts for item in part]


def check_on_first_rank(check: Callable[[], None]) -> None:
    """Lets the first rank check something, and raises on every rank what it finds. Collective.

    Raises:
        ValueError: what `check` raises.
    """
    problems: list[str] = []
    if rank_and_world()[0] == 0:
        try:
            check()
        except ValueError as error:
            problems.append(str(error))

    # Alike on all ranks: one that ends alone would leave the others waiting.
    for problem in gather_objects(problems):
        raise ValueError(problem)


def sum_over_ranks(x: Tensor) -> Tensor:
    """The elementwise sum over all ranks, without gradient; `x` itself stays as it is.

    >>> sum_over_ranks(torch.tensor([1.0, 2.0]))
    tensor([1., 2.])
    """
    if rank_and_world()[1] == 1:
        return x.detach()
    total = _on_wire(x.detach().clone(memory_format=torch.contiguous_format))
    dist.all_reduce(total)
    return total.to(x.device)


def mean_over_ranks(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mean over all ranks of each scalar, without gradient, in one collective.

    Args:
        values: name -> scalar; the same names in the same order on every rank.

    >>> mean_over_ranks({"train/loss": torch.tensor(2.0)})
    {'train/loss': tensor(2.)}
    """
    world = rank_and_world()[1]
    if world == 1:
        return {name: value.detach() for name, value in values.items()}

    # In float32, so that scalars of several precisions travel together.
    stacked = torch.stack([value.detach().float() for value in values.values()])
    means = sum_over_ranks(stacked) / world
    return dict(zip(values, means.unbind(), strict=True))


def _all_gather(x: Tensor) -> Tensor:
    wired = _on_wire(x.detach().contiguous())
    parts = [torch.empty_like(wired) for _ in range(rank_and_world()[1])]
    dist.all_gather(parts, wired)
    return torch.cat(parts).to(x.device)


def _on_wire(x: Tensor) -> Tensor:
    """NCCL moves device memory only: a host tensor (names' ids, sums) travels through the GPU."""
    return x.cuda() if dist.get_backend() == "nccl" else x
