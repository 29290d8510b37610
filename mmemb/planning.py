"""How much memory a step needs: weights, gradients, optimiser, activations, losses, caches.

Arithmetic on the shapes that `mmemb.model_sizes` finds; knows neither configurations nor libraries.
Units: bytes unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import ceil
from typing import final

from mmemb.nce_sweeps import TILE_NUMBERS
from mmemb.plan_layers import FP32, PRECISIONS, Call, Tower

GIB = 2**30


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A model as its plan needs it.

    Attributes:
        total: parameters.
        trainable: parameters that are trained as they are; 0 with LoRA but for what is new.
        updates: parameters of LoRA updates, fp32 whatever the weights' type.
        rank: of the updates; 0 = there are none.
        towers: by name, `text` first.
        vocabulary: rows of the output layer; 0 = there is none.
    """

    total: int
    trainable: int
    towers: Mapping[str, Tower]
    updates: int = 0
    rank: int = 0
    vocabulary: int = 0

    def copied(self, training: Training) -> int:
        """Weights of which autocast keeps a copy until the backward pass: those of linear layers
        that gradients pass through; of one block where blocks are computed anew."""
        if not PRECISIONS[training.precision].casts:
            return 0
        trained = [tower for tower in self.towers.values() if tower.trained and tower.blocks]
        return sum(t.weights // (len(t.blocks) if training.checkpointing else 1) for t in trained)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How a step is computed.

    Attributes:
        precision: key of `PRECISIONS`.
        checkpointing: blocks are computed twice.
        padded: see `Block.saved`.
        moments: numbers an optimiser keeps for each trained one: 2 for AdamW.
        strategy: `single`, `ddp` or `fsdp2`.
        devices: ranks.
        micro_batches: into which a rank's batch is cut; 1 = not.
        retained_gib: of graphs that a gradient cache keeps.
    """

    precision: str = "float32"
    checkpointing: bool = False
    padded: bool = True
    moments: int = 2
    strategy: str = "single"
    devices: int = 1
    micro_batches: int = 1
    retained_gib: float = 0.0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes of a device, by part; see docs/plan.md for what is in each."""

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    loss: int = 0
    cache: int = 0

    @property
    def total(self) -> int:
        """At the most. AdamW's roots of its second moments need as much as one moment while the
        activations are gone, so the larger of both counts."""
        passing = max(self.activations + self.loss, self.optimizer // 2)
        return self.weights + self.gradients + self.optimizer + self.cache + passing

    def parts(self) -> dict[str, int]:
        """By name."""
        return {part.name: getattr(self, part.name) for part in fields(self)}


def state_memory(model: ModelShape, training: Training) -> Memory:
    """What a step needs whatever its batch: weights, gradients, optimiser.

    >>> shape = ModelShape(total=100, trainable=60, towers={})
    >>> state_memory(shape, Training()).parts()["optimizer"]
    480
    """
    precision, ranks = PRECISIONS[training.precision], training.devices
    trained = precision.weight * model.trainable + FP32 * model.updates
    weights = precision.weight * model.total + FP32 * model.updates
    gradients, optimizer = trained, training.moments * trained
    if training.strategy == "fsdp2":
        # One group: a shard at rest, all of it (in bf16 under mixed precision) during a step.
        whole = precision.compute * (model.total + model.updates)
        shard = ceil(weights / ranks)
        gathered = precision.compute * (model.trainable + model.updates)
        summed = FP32 * (model.trainable + model.updates) if precision.casts else gathered
        gradients = gathered + summed + ceil(trained / ranks)
        return Memory(weights=shard + whole, gradients=gradients, optimizer=ceil(optimizer / ranks))
    if training.strategy == "ddp":
        gradients *= 2  # its buckets are copies
    weights += precision.compute * model.copied(training)
    return Memory(weights=weights, gradients=gradients, optimizer=optimizer)


def step_memory(
    model: ModelShape, training: Training, calls: Mapping[str, Sequence[Call]], loss: int = 0
) -> Memory:
    """What a training step needs at the most.

    Args:
        model: its shapes.
        training: how the step is computed.
        calls: by tower, the forward calls of one micro-batch.
        loss: bytes, of `loss_memory`.
    """
    graph = sum(
        tower.activations(
            calls.get(name, ()),
            PRECISIONS[training.precision],
            checkpointing=training.checkpointing,
            padded=training.padded,
            rank=model.rank,
        )
        for name, tower in model.towers.items()
    )
    graphs = retained_graphs(graph, training.micro_batches, training.retained_gib)
    state = state_memory(model, training)
    return Memory(
        weights=state.weights,
        gradients=state.gradients,
        optimizer=state.optimizer,
        activations=graphs * graph,
        loss=loss,
    )


def retained_graphs(graph: int, micro_batches: int, retained_gib: float) -> int:
    """How many micro-batches have their graph in memory at once.

    As `mmemb.gradient_cache`: the last one's, and before it those that fit; the first of these is
    not known before it is made.

    >>> [retained_graphs(2**29, 8, gib) for gib in (0.0, 0.1, 2.0, 99.0)]
    [1, 2, 5, 8]
    """
    kept = max(1, int(retained_gib * GIB // max(graph, 1))) if retained_gib > 0 else 0
    return min(micro_batches, 1 + kept)


def loss_memory(rows: int, columns: int, width: int, terms: int, both: bool = True) -> int:
    """Bytes of the contrastive losses: gathered vectors, their gradients, and two tiles.

    Args:
        rows: queries of this rank.
        columns: targets of all ranks, hard negatives included.
        width: of a vector; Matryoshka widths are prefixes.
        terms: of the loss (direct, reasoning).
        both: whether targets look for queries, too.

    >>> loss_memory(4, 8, 2, 1) == 4 * (2 * 2 * (8 + 8 + 4) + 2 * 4 * 8)
    True
    """
    vectors = columns * (2 if both else 1) + rows
    tile = 2 * min(rows * columns, max(TILE_NUMBERS, columns))
    return FP32 * (terms * 2 * vectors * width + tile)


def cache_memory(tower: Tower, rows: int, length: int, shared: int, precision: str) -> int:
    """Bytes of keys and values of rows under way.

    Args:
        tower: of the language model.
        rows: under way together.
        length: tokens of a row at its end.
        shared: tokens of a prefix that is stored once.
        precision: key of `PRECISIONS`.

    >>> from mmemb.plan_layers import Block
    >>> layer = Block(hidden=8, inner=16, query=8, key=4, heads=2, gated=True, rms=True)
    >>> cache_memory(Tower(blocks=(layer,), weights=0, trained=False), 3, 10, 5, "float32")
    1120
    """
    keys = sum(block.key for block in tower.blocks if block.attends)
    return PRECISIONS[precision].compute * 2 * keys * (rows * length + shared)
