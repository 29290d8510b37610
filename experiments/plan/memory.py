"""How much memory a step needs: weights, gradients, optimiser, activations, losses, caches.

Arithmetic on the shapes that `experiments.plan.model_sizes` finds; knows neither configurations nor
libraries.
Units: bytes unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import ceil
from typing import final

from experiments.plan.layers import FP32, PRECISIONS, Call, Precision, Tower
from mmemb.losses.nce_sweeps import TILE_NUMBERS

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
        picture_states: vectors that a vision tower gives for each token of a picture: its last
            layer's, and those that a model feeds in deeper.
    """

    total: int
    trainable: int
    towers: Mapping[str, Tower]
    updates: int = 0
    rank: int = 0
    vocabulary: int = 0
    picture_states: int = 1

    @property
    def hidden(self) -> int:
        """Width of the language model."""
        return self.towers["text"].blocks[0].hidden

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
@dataclass(frozen=True, slots=True)
class Replies:
    """Ends of rows whose next-token loss is trained.

    Attributes:
        call: the rows, whole.
        length: tokens of a reply.
        together: whether the head reads the replies of all rows at once; else one after the other.
    """

    call: Call
    length: int
    together: bool = False

    def kept(self, model: ModelShape, precision: Precision) -> int:
        """Bytes until the backward pass: log-probabilities in fp32, and what the head needs.

        >>> from experiments.plan.layers import Block
        >>> layer = Block(hidden=8, inner=16, query=8, key=4, heads=2, gated=True, rms=True)
        >>> text = Tower(blocks=(layer,), weights=0, trained=True)
        >>> shape = ModelShape(total=0, trainable=0, towers={"text": text}, vocabulary=100, rank=1)
        >>> Replies(Call(2, 9), 3).kept(shape, PRECISIONS["float32"])
        2400
        """
        tokens = self.call.rows * self.length
        kept, copy = FP32 * model.vocabulary * tokens, precision.compute * model.vocabulary
        if precision.casts and model.rank:  # autocast shares no copy of weights that are frozen
            return kept + copy * model.hidden * (1 if self.together else self.call.rows)
        if precision.casts:
            return kept + (copy + precision.compute * tokens) * model.hidden
        # A frozen head needs no input; of a trained one it is a part of all states, which stay.
        return kept + (0 if model.rank else precision.stream * self.call.tokens * model.hidden)

    def passing(self, model: ModelShape) -> int:
        """Bytes of the gradients of log-probabilities and logits, while the head runs back."""
        rows = self.call.rows if self.together else 1
        return 2 * FP32 * model.vocabulary * rows * self.length


@final
@dataclass(frozen=True, slots=True)
class Contrast:
    """What the contrastive losses compare.

    Attributes:
        columns: targets of all ranks, hard negatives included.
        width: of a vector; Matryoshka widths are prefixes.
        terms: of the loss (direct, reasoning, two across them, a teacher's).
        both: whether targets look for queries, too.
    """

    columns: int
    width: int
    terms: int
    both: bool = True


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
    model: ModelShape,
    training: Training,
    calls: Mapping[str, Sequence[Call]],
    loss: int = 0,
    replies: Sequence[Replies] = (),
) -> Memory:
    """What a training step needs at the most.

    Args:
        model: its shapes.
        training: how the step is computed.
        calls: by tower, the forward calls of one micro-batch.
        loss: bytes, of `loss_memory`.
        replies: of one micro-batch.
    """
    precision = PRECISIONS[training.precision]
    graph = sum(
        tower.activations(
            calls.get(name, ()),
            precision,
            checkpointing=training.checkpointing,
            padded=training.padded,
            rank=model.rank,
        )
        for name, tower in model.towers.items()
    )
    written = sum(reply.kept(model, precision) for reply in replies)
    passing = max((reply.passing(model) for reply in replies), default=0)
    graphs = retained_graphs(graph + written, training.micro_batches, training.retained_gib)
    return replace(
        state_memory(model, training),
        activations=graphs * graph,
        loss=loss + graphs * written + passing,
    )


def retained_graphs(graph: int, micro_batches: int, retained_gib: float) -> int:
    """How many micro-batches have their graph in memory at once.

    As `mmemb.training.gradient_cache`: the last one's, and before it those that fit; the first of
    these is not known before it is made.

    >>> [retained_graphs(2**29, 8, gib) for gib in (0.0, 0.1, 2.0, 99.0)]
    [1, 2, 5, 8]
    """
    kept = max(1, int(retained_gib * GIB // max(graph, 1))) if retained_gib > 0 else 0
    return min(micro_batches, 1 + kept)


def loss_memory(rows: int, contrast: Contrast) -> int:
    """Bytes of the contrastive losses: gathered vectors, their gradients, and two tiles.

    Args:
        rows: queries of this rank.
        contrast: what they are compared with.

    >>> loss_memory(4, Contrast(8, 2, terms=1)) == 4 * (2 * 2 * (8 + 8 + 4) + 2 * 4 * 8)
    True
    """
    vectors = contrast.columns * (2 if contrast.both else 1) + rows
    tile = 2 * min(rows * contrast.columns, max(TILE_NUMBERS, contrast.columns))
    return FP32 * (contrast.terms * 2 * vectors * contrast.width + tile)


def cache_memory(tower: Tower, rows: int, length: int, shared: int, precision: str) -> int:
    """Bytes of keys and values of rows under way.

    Args:
        tower: of the language model.
        rows: under way together.
        length: tokens of a row at its end.
        shared: tokens of a prefix that is stored once.
        precision: key of `PRECISIONS`.

    >>> from experiments.plan.layers import Block
    >>> layer = Block(hidden=8, inner=16, query=8, key=4, heads=2, gated=True, rms=True)
    >>> cache_memory(Tower(blocks=(layer,), weights=0, trained=False), 3, 10, 5, "float32")
    1120
    """
    keys = sum(block.key for block in tower.blocks if block.attends)
    return PRECISIONS[precision].compute * 2 * keys * (rows * length + shared)
