"""Measures what a training step keeps, as the planner's formulas are held against it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from mmemb.blocks import checkpoint_blocks
from mmemb.plan_layers import PRECISIONS, Call
from mmemb.planning import ModelShape, Training


def saved_bytes(model: nn.Module, run: Callable[[], Any]) -> int:
    """Bytes of the storages that autograd saves, without those of parameters."""
    sizes: dict[int, int] = {}
    alive: list[Tensor] = []  # an address must not be given to another tensor meanwhile

    def note(x: Tensor) -> Tensor:
        sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        alive.append(x)
        return x

    with saved_tensors_hooks(note, lambda x: x):
        run()
    for parameter in model.parameters():
        sizes.pop(parameter.untyped_storage().data_ptr(), None)
    return sum(sizes.values())


def measured(model: nn.Module, blocks: list[nn.Module], run: Callable[[], Any], again: bool) -> int:
    """Of a step; with recomputed blocks also what the largest of them keeps meanwhile."""
    if not again:
        return saved_bytes(model, run)
    given: list[tuple[Any, Any]] = []
    plain = blocks[-1].forward
    hook = blocks[-1].register_forward_pre_hook(
        lambda _, words, named: given.append((words, named)), with_kwargs=True
    )
    checkpoint_blocks(blocks)
    kept = saved_bytes(model, run)
    hook.remove()

    def one(arguments: tuple[Any, Any]) -> None:
        plain(*arguments[0], **arguments[1])

    return kept + max(saved_bytes(model, lambda call=call: one(call)) for call in given)


@contextmanager
def under(precision: str) -> Iterator[None]:
    """Autocast, where the precision is mixed."""
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "mixed"):
        yield


def planned(
    shape: ModelShape,
    calls: dict[str, list[Call]],
    precision: str,
    again: bool,
) -> int:
    """What the planner says of it; autocast's copies of weights are saved, too."""
    kept = sum(
        shape.towers[name].activations(
            found, PRECISIONS[precision], checkpointing=again, rank=shape.rank
        )
        for name, found in calls.items()
    )
    return kept + 2 * shape.copied(Training(precision=precision, checkpointing=again))
