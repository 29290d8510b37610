"""What autograd saves of a transformer's layers, by their shapes: arithmetic, no model.

Every term counts tensors that were seen to be saved; docs/plan.md lists them. Units: bytes unless a
name says otherwise; "numbers" are elements of a tensor, whatever their type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import final

FP32 = 4
"""Bytes of a number in full precision."""


@final
@dataclass(frozen=True, slots=True)
class Precision:
    """Bytes of a number, by where it stands.

    Attributes:
        weight: of a parameter.
        compute: of an operand of a matrix product.
        stream: of the residual stream, the input and output of a block.
    """

    weight: int
    compute: int
    stream: int

    @property
    def casts(self) -> bool:
        """Whether autocast copies weights, and an operand once for every layer that reads it."""
        return self.weight > self.compute


PRECISIONS: Mapping[str, Precision] = {
    "float32": Precision(4, 4, 4),
    "bfloat16": Precision(2, 2, 2),
    "float16": Precision(2, 2, 2),
    "mixed": Precision(4, 2, 4),
}
"""By name of a type of weights; `mixed` is a trainer's `bf16-mixed` or `16-mixed` around fp32."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One repeated layer of a transformer.

    Attributes:
        hidden: width of the residual stream.
        inner: width inside the feed-forward part.
        query: heads times width of a head.
        key: the same of keys; smaller where several query heads share one.
        heads: of queries.
        gated: feed-forward part of three matrices (SwiGLU) instead of two.
        rms: RMSNorm of transformers, which keeps its input and the result in steps of its own;
            LayerNorm, one kernel, keeps its input.
        head_norms: queries and keys have an RMSNorm each.
        qkv_readers: linear layers that read the attention's input: 3, or 1 where packed.
        packed_rotary: queries, keys and values lie in one tensor, of which a rotated copy of
            queries and keys is made (vision towers of Qwen).
        extra: further numbers a token that are kept in fp32, by a linear attention, an output
            gate or an activation in several steps.
        chunk: to a multiple of how many tokens a linear attention fills a row up.
        attends: whether tokens look at all others; False for a linear attention.
        masked: whether padded rows need a mask, of which sdpa makes a copy in every block.
    """

    hidden: int
    inner: int
    query: int
    key: int
    heads: int
    gated: bool
    rms: bool
    head_norms: bool = False
    qkv_readers: int = 3
    packed_rotary: bool = False
    extra: int = 0
    chunk: int = 1
    attends: bool = True
    masked: bool = False

    def saved(
        self, precision: Precision, length: int = 0, *, padded: bool = True, rank: int = 0
    ) -> int:
        """Bytes a token that autograd saves.

        Args:
            precision: of weights and products.
            length: tokens of a row, padding included.
            padded: whether sdpa gets a mask: then it keeps one in every block, and transformers
                copies keys to every query head. Flash attention needs neither.
            rank: of LoRA updates, beside which all weights are frozen; 0 = there are none.

        >>> smollm2 = Block(hidden=576, inner=1536, query=576, key=192, heads=9, gated=True,
        ...                 rms=True)
        >>> smollm2.saved(PRECISIONS["float32"]) == 4 * (6 * 576 + 4 * 576 + 4 * 1536 + 9)
        True
        """
        norms = 2 * self.norm(self.hidden, precision, rank > 0)
        if self.head_norms:
            norms += self.norm(self.query, precision, rank > 0)
            norms += self.norm(self.key, precision, rank > 0)
        readers = self.qkv_readers + (2 if self.gated else 1)
        inputs = precision.compute * self.hidden * (readers if precision.casts else 2)
        kept = (4 if self.gated else 2) * self.inner  # the last of them is read by a linear layer
        if self.packed_rotary:
            kept += 6 * self.query  # the packed three, queries and keys rotated, the output
        elif self.attends:
            kept += 2 * self.query + 2 * (self.query if padded else self.key)
            kept += length if padded and self.masked else 0
        if rank and precision.weight < FP32:
            # Updates are fp32: each reads a copy of its own; frozen weights need no input.
            inputs = FP32 * (readers * self.hidden + self.query + self.inner)
            kept -= self.inner
        updates = precision.compute * rank * (readers + 2)
        softmax = FP32 * self.heads if self.attends else 0  # its logsumexp
        filled = ceil(length / self.chunk) * self.chunk / max(length, 1)
        extra = FP32 * (ceil(self.extra * filled) if self.chunk > 1 else self.extra)
        return norms + inputs + precision.compute * kept + updates + softmax + extra

    def norm(self, width: int, precision: Precision, frozen: bool) -> int:
        """Bytes a token that a norm keeps, whose own weight is perhaps frozen."""
        if not self.rms:
            return precision.stream * width
        # In fp32 whatever the weights' type, then what is multiplied by the norm's own weight.
        return (FP32 + (0 if frozen else precision.stream)) * width


@final
@dataclass(frozen=True, slots=True)
class Call:
    """Rows that are read together, padded to one length in tokens."""

    rows: int
    length: int

    @property
    def tokens(self) -> int:
        """Padding included."""
        return self.rows * self.length


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Tower:
    """Blocks that read the same tokens.

    Attributes:
        blocks: in order.
        weights: numbers in its linear layers.
        trained: whether gradients pass through it.
        outside: norms and states of the stream that are kept before and behind the blocks.
    """

    blocks: tuple[Block, ...]
    weights: int
    trained: bool
    outside: int = 1

    def activations(
        self,
        calls: Sequence[Call],
        precision: Precision,
        *,
        checkpointing: bool = False,
        padded: bool = True,
        rank: int = 0,
    ) -> int:
        """Bytes kept for the backward pass of some calls.

        Args:
            calls: what is read.
            precision: of weights and products.
            checkpointing: blocks keep their input alone; one is whole while it is recomputed.
            padded: see `Block.saved`.
            rank: likewise.
        """
        if not self.trained or not self.blocks:
            return 0
        first = self.blocks[0]
        outside = self.outside * first.norm(first.hidden, precision, rank > 0)
        inputs = sum(precision.stream * block.hidden for block in self.blocks)
        kept, largest = 0, 0
        for call in calls:
            each = [b.saved(precision, call.length, padded=padded, rank=rank) for b in self.blocks]
            kept += call.tokens * (outside + (inputs if checkpointing else sum(each)))
            largest = max(largest, call.tokens * max(each))
        return kept + (largest if checkpointing else 0)
