"""The repeated blocks of a network: recomputed instead of kept, or compiled, one by one.

Both change how numbers are computed and none of the numbers (up to rounding). A block keeps its
class, its names and its hooks, so whatever wraps or saves the network sees nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import wraps
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpoint_blocks(blocks: Iterable[nn.Module]) -> None:
    """Keeps only the inputs of each block for the backward pass, which runs the block once more.

    It costs about a third more time and saves most of the memory of a deep network. Unlike the
    switch of transformers it does not ask whether the block is in training mode: pretrained
    encoders are trained without dropout, hence in evaluation mode.
    """
    for block in blocks:
        block.forward = _checkpointed(block.forward)


def compile_blocks(blocks: Iterable[nn.Module], backend: str) -> None:
    """Compiles each block, for inputs of any length; equal blocks share the compiled code.

    Args:
        blocks: what to compile; before `checkpoint_blocks`.
        backend: of `torch.compile`, e.g. `inductor`.
    """
    backends = torch.compiler.list_backends(exclude_tags=())
    if backend not in backends:
        raise ValueError(f"compile_backend {backend!r} is unknown; choose one of {backends}.")

    # `dynamic` from the start: batches differ in length, and the first length would be compiled
    # alone.
    for block in blocks:
        block.forward = torch.compile(block.forward, backend=backend, dynamic=True)


def _checkpointed(forward: Any) -> Any:
    @wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        # Nothing is kept for a backward pass here, so a checkpoint would save nothing.
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run
