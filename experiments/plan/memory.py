"""Memory of a step on one device: weights, gradients, optimiser, activations, losses, cache.

The activations come from the towers of a model (`experiments.plan.towers`); all else is arithmetic.
Units: bytes, unless a name has another one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import final

from experiments.plan.precisions import FP32, PRECISIONS, Precision
from experiments.plan.towers import Call, Tower
from mmemb.losses.infonce import kept_scores

GIB = 2**30


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The sizes of a model, and its towers.

    Attributes:
        total: parameters, without LoRA updates.
        trainable: parameters that are trained as they are; with LoRA those beside the updates.
        towers: by name, `text` first.
        hidden: width of the language model.
        updates: parameters of the LoRA updates, fp32 whatever the type of the weights.
        rank: of the updates; 0 = there are none.
        vocabulary: rows of the output layer; 0 = there is none.
        cached: numbers that the keys and values of a token take, in all layers.
        picture_states: vectors that a vision tower gives for each token of a picture: those of its
            last layer, and those that a model feeds in deeper.
    """

    total: int
    trainable: int
    towers: Mapping[str, Tower]
    hidden: int = 0
    updates: int = 0
    rank: int = 0
    vocabulary: int = 0
    cached: int = 0
    picture_states: int = 1


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """Settings by which a training step is computed.

    Attributes:
        precision: key of `PRECISIONS`.
        checkpointing: True if blocks are computed twice.
        padded: True if attention gets a mask.
        moments: numbers that an optimiser keeps for each trained one: 2 for AdamW.
        strategy: `single`, `ddp` or `fsdp2`.
        devices: ranks.
        micro_batches: into which the batch of a rank is cut; 1 = it is not cut.
        retained_gib: memory for the graphs that a gradient cache keeps.
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
        call: the whole rows.
        length: tokens of a reply.
        together: whether the head reads the replies of all rows at once; else one after the other.
    """

    call: Call
    length: int
    together: bool = False

    def kept(self, model: ModelShape, precision: Precision) -> int:
        """Returns the bytes that stay until the backward pass: log-probabilities in fp32, and what
        the head needs.

        >>> shape = ModelShape(total=0, trainable=0, towers={}, vocabulary=100, rank=1)
        >>> Replies(Call(2, 9), 3).kept(shape, PRECISIONS["float32"])
        2400
        """
        tokens = self.call.rows * self.length
        kept, copy = FP32 * model.vocabulary * tokens, precision.compute * model.vocabulary

        if precision.autocast and model.rank:
            # Autocast does not share its copies of frozen weights: one for every product.
            return kept + copy * model.hidden * (1 if self.together else self.call.rows)
        if precision.autocast:
            return kept + (copy + precision.compute * tokens) * model.hidden
        # A frozen head needs no input. The input of a trained one is a slice of the states of
        # whole rows, and a slice keeps all of them.
        return kept + (0 if model.rank else precision.weight * self.call.tokens * model.hidden)

    def passing(self, model: ModelShape) -> int:
        """Returns the bytes of the gradients of log-probabilities and logits, which are there only
        while the head runs back."""
        rows = self.call.rows if self.together else 1
        return 2 * FP32 * model.vocabulary * rows * self.length


@final
@dataclass(frozen=True, slots=True)
class Contrast:
    """The comparisons of the contrastive losses.

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
    """Bytes of a device, by part; docs/plan.md lists what each part holds."""

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    loss: int = 0
    cache: int = 0

    @property
    def total(self) -> int:
        """The bytes at the highest moment.

        AdamW makes the roots of its second moments when the activations are gone. They need as
        much as one moment, so the larger of both counts.
        """
        passing = max(self.activations + self.loss, self.optimizer // 2)
        return self.weights + self.gradients + self.optimizer + self.cache + passing


def state_memory(model: ModelShape, training: Training) -> Memory:
    """Returns what a step needs whatever its batch is: weights, gradients, optimiser.

    >>> shape = ModelShape(total=100, trainable=60, towers={})
    >>> state_memory(shape, Training()).optimizer
    480
    """
    precision, ranks = PRECISIONS[training.precision], training.devices
    trained = precision.weight * model.trainable + FP32 * model.updates
    weights = precision.weight * model.total + FP32 * model.updates
    gradients, optimizer = trained, training.moments * trained

    if training.strategy == "fsdp2":
        # The backbone is one group: a shard at rest, the whole (as it travels) during a step.
        whole = precision.compute * (model.total + model.updates)
        shard = ceil(weights / ranks)
        gathered = precision.compute * (model.trainable + model.updates)
        summed = FP32 * (model.trainable + model.updates) if precision.autocast else gathered
        gradients = gathered + summed + ceil(trained / ranks)
        return Memory(weights=shard + whole, gradients=gradients, optimizer=ceil(optimizer / ranks))

    if training.strategy == "ddp":
        gradients *= 2  # its buckets are copies
    return Memory(weights=weights, gradients=gradients, optimizer=optimizer)


def step_memory(
    model: ModelShape,
    training: Training,
    calls: Mapping[str, Sequence[Call]],
    loss: int = 0,
    replies: Sequence[Replies] = (),
) -> Memory:
    """Returns what a training step needs at its highest moment.

    Args:
        model: sizes and towers.
        training: how the step is computed.
        calls: by tower, the forward calls of one micro-batch.
        loss: bytes of the contrastive losses, by `loss_memory`.
        replies: of one micro-batch.
    """
    precision = PRECISIONS[training.precision]
    graph = _activations(model, training, calls, graphs=1)
    written = sum(reply.kept(model, precision) for reply in replies)
    passing = max((reply.passing(model) for reply in replies), default=0)

    # The next-token loss is a part of every graph; what passes in the backward pass is there once.
    graphs = retained_graphs(graph + written, training.micro_batches, training.retained_gib)
    return replace(
        state_memory(model, training),
        activations=_activations(model, training, calls, graphs),
        loss=loss + graphs * written + passing,
    )


def _activations(
    model: ModelShape, training: Training, calls: Mapping[str, Sequence[Call]], graphs: int
) -> int:
    """Bytes that the towers keep of some micro-batches that are equally large."""
    is_sharded = training.strategy == "fsdp2" and training.precision == "mixed"
    precision = "sharded" if is_sharded else training.precision

    def kept(copies: int) -> int:
        return sum(
            tower.kept(
                tuple(calls.get(name, ())) * copies,
                precision,
                checkpointing=training.checkpointing,
                padded=training.padded,
            )
            for name, tower in model.towers.items()
        )

    one = kept(1)
    # A further graph is smaller than the first one, with which it shares autocast's copies.
    return one if graphs == 1 else one + (graphs - 1) * (kept(2) - one)


def retained_graphs(graph: int, micro_batches: int, retained_gib: float) -> int:
    """Returns how many micro-batches have their graph in memory at once.

    As in `mmemb.training.gradient_cache`: that of the last one, and before it those that fit; the
    size of the first of these is not known before it is made.

    >>> [retained_graphs(2**29, 8, gib) for gib in (0.0, 0.1, 2.0, 99.0)]
    [1, 2, 5, 8]
    """
    # The first graph is kept before its size is known, even if it alone is too large.
    kept = max(1, int(retained_gib * GIB // max(graph, 1))) if retained_gib > 0 else 0
    return min(micro_batches, 1 + kept)


def loss_memory(rows: int, contrast: Contrast) -> int:
    """Returns the bytes of the contrastive losses: gathered vectors, their gradients, scores.

    Args:
        rows: queries of this rank.
        contrast: what they are compared with.

    >>> loss_memory(4, Contrast(8, 2, terms=1)) == 4 * (2 * 2 * (8 + 8 + 4) + 9 * 4 * 8)
    True
    """
    # Each term gathers its own vectors; tiles of one are freed before the next begins.
    vectors = contrast.columns * (2 if contrast.both else 1) + rows
    tile = kept_scores(rows, contrast.columns, contrast.terms)
    return FP32 * (contrast.terms * 2 * vectors * contrast.width + tile)
