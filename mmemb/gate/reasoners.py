"""Two ways to reason about a side: writers write and the side is read again, or all in one pass.

Shapes: B sides, D embedding width, H width of a prompt state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from mmemb.backbones.base import Backbone
from mmemb.backbones.generative import DirectVectors, GenerativeBackbone
from mmemb.rationales import RationaleWriter, SelfWriter
from mmemb.rationales.writers.base import RationaleSource
from mmemb.records.inputs import Side
from mmemb.records.rationales import DIRECT, GREEDY, Rationale


@final
@dataclass(frozen=True, slots=True)
class Written:
    """Rationales about B sides, written live or earlier.

    Attributes:
        depths_B: int64, the depth that was asked for; 0 = direct.
        rationales: B of them; None where nothing was asked for, or nothing was written.
        vectors_BD: unit vectors, if the writer read its rationales itself; None = they are to be
            read.
    """

    depths_B: Tensor
    rationales: tuple[Rationale | None, ...]
    vectors_BD: Tensor | None = None


class Reasoner(ABC):
    """Embeds sides, writes about them at the depths of a gate, and reads what was written.

    Holds nothing about a batch: each step takes the records of the steps before it.

    Args:
        backbone: embeds a side with and without a rationale.
        sources: name of a depth -> where its rationales come from, the cheapest first.
    """

    def __init__(self, backbone: Backbone, sources: Mapping[str, RationaleSource]) -> None:
        self.backbone, self.sources = backbone, dict(sources)

    def can_reason(self, side: Side) -> bool:
        """Tells if a side can be read at every depth: only such queries are eligible."""
        return bool(self.sources) and all(s.can_read(side) for s in self.sources.values())

    def prompt_states(self, sides: Sequence[Side]) -> Tensor:
        """Hidden states (B, H) of the deepest source at the ends of its prompts."""
        return list(self.sources.values())[-1].prompt_states(sides)

    @abstractmethod
    def embed(self, sides: Sequence[Side]) -> DirectVectors:
        """Embeds B sides without a rationale."""

    @abstractmethod
    def write(self, direct: DirectVectors, depths_B: Tensor) -> Written:
        """Writes one greedy rationale about each side whose depth is not 0.

        Args:
            direct: what `embed` gave.
            depths_B: int64, numbers of depths.
        """

    def read(self, direct: DirectVectors, written: Written) -> Tensor:
        """Returns unit vectors (B, D) of sides with their rationales, else the direct ones."""
        if written.vectors_BD is not None:
            return written.vectors_BD

        # Rationales of one depth are of like length: little is padded. A side about which nothing
        # was written is read among them, without one.
        vectors_BD = direct.vectors_BD.clone()
        for depth in range(1, 1 + len(self.sources)):
            if rows := _rows_at(depth, written.depths_B):
                vectors_BD[rows] = self.backbone.encode(
                    [direct.sides[row] for row in rows], [written.rationales[row] for row in rows]
                )
        return vectors_BD


@final
class TwoPassReasoner(Reasoner):
    """Writers write; the sides are then read once more, with their rationales."""

    def __init__(self, backbone: Backbone, writers: Mapping[str, RationaleWriter]) -> None:
        super().__init__(backbone, writers)
        self.writers = tuple(writers.values())

    def embed(self, sides: Sequence[Side]) -> DirectVectors:
        return DirectVectors(tuple(sides), self.backbone.encode(sides))

    def write(self, direct: DirectVectors, depths_B: Tensor) -> Written:
        rationales: list[Rationale | None] = [None] * len(direct.sides)

        for depth, writer in enumerate(self.writers, start=1):
            rows = _rows_at(depth, depths_B)
            if not rows:  # a writer may be a server that would be asked for nothing
                continue
            sides = [direct.sides[row] for row in rows]
            drafts = writer.write(sides, torch.full((len(rows), 1), GREEDY))
            for row, greedy in zip(rows, drafts, strict=True):
                rationales[row] = greedy[0] if greedy else None
        return Written(depths_B, tuple(rationales))


@final
class OnePassReasoner(Reasoner):
    """The backbone writes by itself: it reads every prompt once, and goes on in the same sequence.

    Raises:
        ValueError: the backbone does not write.
    """

    def __init__(self, backbone: Backbone, writers: Mapping[str, SelfWriter]) -> None:
        super().__init__(backbone, writers)
        if not isinstance(backbone, GenerativeBackbone):
            raise ValueError(
                "SelfWriter stands for what a VisionLanguageBackbone writes by itself, but the "
                f"backbone is a {type(backbone).__name__}: give it a writer of its own."
            )
        self.writer = backbone
        self.depths = (DIRECT, *writers)

        # The caches have room for the longest rationale of any depth.
        samplings = {depth: writer.sampling for depth, writer in writers.items()}
        self.longest = {depth: each.max_new_tokens for depth, each in samplings.items()}
        self.sampling = max(samplings.values(), key=lambda each: each.max_new_tokens)

    def embed(self, sides: Sequence[Side]) -> DirectVectors:
        return self.writer.read_prompts(sides, self.sampling)

    def write(self, direct: DirectVectors, depths_B: Tensor) -> Written:
        if not direct.prompts:  # vectors that were made otherwise
            direct = self.embed(direct.sides)
        depths = [self.depths[number] for number in depths_B.tolist()]
        thoughts = self.writer.think(direct, depths, self.sampling, longest=self.longest)
        return Written(depths_B, thoughts.rationales, thoughts.vectors_BD)


def make_reasoner(backbone: Backbone, writers: Mapping[str, RationaleSource]) -> Reasoner:
    """Returns the reasoner that fits the writers of a gate, once for all its queries.

    Raises:
        ValueError: some depths have a `SelfWriter` and others have not, the backbone does not
            write, or a source is of neither kind.
    """
    apart = {d: writer for d, writer in writers.items() if isinstance(writer, RationaleWriter)}
    inside = {d: writer for d, writer in writers.items() if isinstance(writer, SelfWriter)}

    # A prompt that is read once cannot wait for what another model writes about it.
    if inside and len(inside) < len(writers):
        raise ValueError(
            "SelfWriter must stand at every depth or at none, got writers "
            f"{[type(writer).__name__ for writer in writers.values()]}."
        )
    if inside:
        return OnePassReasoner(backbone, inside)

    # A source of another kind would be passed over, and the depths behind it shifted.
    if others := [type(writer).__name__ for depth, writer in writers.items() if depth not in apart]:
        raise ValueError(f"{others[0]} is no writer: derive it from RationaleWriter.")
    return TwoPassReasoner(backbone, apart)


def _rows_at(depth: int, depths_B: Tensor) -> list[int]:
    return (depths_B == depth).nonzero().flatten().tolist()
