"""Exact gradients of a large batch in the memory of a small one (arXiv 2101.06983).

See docs/method.md section 6. A contrastive loss needs the vectors of all rows together, but not the
graphs behind them. Micro-batches are embedded one after the other, each in a non-reentrant
checkpoint, which keeps the inputs and makes the graph again in the backward pass, with the same
random numbers. So there is one loss and one backward: automatic optimisation, clipping,
accumulation, autocast and DDP need no change. Graphs that fit into memory are kept, which saves
their second forward pass. Shapes: B rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

_GIB = 2**30

Embed = Callable[[Sequence[int]], tuple[Tensor, ...]]
"""Row numbers -> tensors that the losses need, each with one row for every row number."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class GradientCache:
    """Bounds of micro-batches, and of the memory for graphs.

    Attributes:
        micro_batch_size: most rows of a micro-batch; None = no bound.
        micro_batch_tokens: most tokens of a micro-batch, by the costs of its rows; None = no
            bound. A row that costs more is a micro-batch of its own.
        retained_gib: graphs are kept while they fit into this much memory (the tensors that
            autograd saves, without parameters); 0 = only that of the last micro-batch, which is
            needed first.
    """

    micro_batch_size: int | None = None
    micro_batch_tokens: int | None = None
    retained_gib: float = 0.0

    def __post_init__(self) -> None:
        bounds = {
            "micro_batch_size": self.micro_batch_size,
            "micro_batch_tokens": self.micro_batch_tokens,
        }

        if all(value is None for value in bounds.values()):
            raise ValueError(
                "gradient_cache: give micro_batch_size (rows) or micro_batch_tokens (tokens)."
            )

        for name, value in bounds.items():
            if value is not None and value < 1:
                raise ValueError(f"gradient_cache: {name} {value}: expected 1 or more.")

        # Negated, so that NaN is refused too.
        if not self.retained_gib >= 0:
            raise ValueError(
                f"gradient_cache: retained_gib {self.retained_gib}: expected 0 or more."
            )

    def micro_batches(self, costs: Sequence[int]) -> list[range]:
        """Cuts the rows into consecutive ranges.

        Args:
            costs: tokens of each row.
        """
        batches, start, tokens = [], 0, 0
        for row, cost in enumerate(costs):
            size = row - start

            # A full micro-batch ends before this row, whose cost is not in `tokens` yet.
            full = self.micro_batch_size is not None and size >= self.micro_batch_size
            heavy = self.micro_batch_tokens is not None and tokens + cost > self.micro_batch_tokens
            if size and (full or heavy):
                batches.append(range(start, row))
                start, tokens = row, 0
            tokens += cost
        return [*batches, range(start, len(costs))] if len(costs) > start else batches


def embed_cached(
    embed: Embed,
    costs: Sequence[int],
    cache: GradientCache | None,
    parameters: Callable[[], Iterable[Tensor]] = tuple,
) -> tuple[Tensor, ...]:
    """Returns the outputs of `embed` for all rows, in a graph that `cache` keeps small.

    Bitwise the same as with all graphs retained, and as one call for the whole batch up to
    rounding: `embed` must treat every row by itself.

    Args:
        embed: is called with the rows of a micro-batch, once more in the backward pass where the
            graph was not kept; it must do the same again.
        costs: tokens of each row; their number is the number of rows.
        cache: None = one call for the whole batch.
        parameters: returns the tensors that are in memory anyway and so do not count as part of a
            graph; called after a pass, when the parameters of a sharded model are whole.
    """
    if cache is None or not torch.is_grad_enabled():
        return embed(range(len(costs)))

    memory = GraphMemory(cache.retained_gib * _GIB, parameters)
    outputs = []

    # A batch without rows makes one call, too: every rank must take part in the backward pass.
    *earlier, last = cache.micro_batches(costs) or [range(0)]
    for rows in earlier:
        if memory.has_room():
            with memory.counted():
                outputs.append(embed(rows))
        else:
            outputs.append(checkpoint(embed, rows, use_reentrant=False, preserve_rng_state=True))

    # The backward pass begins with the last micro-batch, so keeping its graph costs no memory.
    outputs.append(embed(last))
    return tuple(torch.cat(column) for column in zip(*outputs, strict=True))


@final
class GraphMemory:
    """Counts the bytes of retained graphs; there is room while one more of the largest fits."""

    def __init__(self, allowed: float, parameters: Callable[[], Iterable[Tensor]] = tuple) -> None:
        self.allowed, self.used, self.largest = allowed, 0, 0
        self._parameters = parameters

    def has_room(self) -> bool:
        """Tells whether one more graph may be kept."""
        return self.allowed > 0 and self.used + self.largest <= self.allowed

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Adds the size of the tensors that autograd saves inside the block."""
        sizes: dict[int, int] = {}

        def note(x: Tensor) -> Tensor:
            # Counted by storage, since views of a tensor share its memory.
            storage = x.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return x

        with saved_tensors_hooks(note, _as_it_is):
            yield

        for parameter in self._parameters():
            sizes.pop(parameter.untyped_storage().data_ptr(), None)

        size = sum(sizes.values())
        self.used, self.largest = self.used + size, max(self.largest, size)


def _as_it_is(x: Tensor) -> Tensor:
    return x
