"""The seam of stage 1: the interface of a rationale writer.

It depends on no model. A writer sees one side and never its partner, so its rationales are
`one-sided`. Terms are those of docs/method.md sections 3, 4, 5 (leak) and 7 (prompt state).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

import mmemb.rationales as package
from mmemb.records.hashing import stable_hash
from mmemb.records.inputs import Side
from mmemb.records.rationales import Rationale
from mmemb.storage.spec import class_path

if TYPE_CHECKING:
    from mmemb.llm.lora import LoraSettings
    from mmemb.rationales.supervised import ReplyTuner


NO_DRAW = -2
"""The seed that pads a ragged row of seeds: nothing is drawn for it."""


class RationaleSource(ABC):
    """Source of the rationales of a depth: a writer, or the embedder itself (`SelfWriter`).

    Attributes:
        name: recorded in every rationale as its `writer`.
        reads: modalities it understands; a side that holds any other gets no rationale.
        file_arguments: arguments of the constructor that name a file, which a saved folder holds.
        model_arguments: those that name a folder or hub id of a model, which stays where it is.
    """

    name: str = ""
    reads: frozenset[str] = frozenset({"text"})
    file_arguments: ClassVar[tuple[str, ...]] = ()
    model_arguments: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Returns the constructor's arguments as JSON data."""

    def spec(self) -> dict[str, Any]:
        """Returns `class_path` and `init_args`, from which `load_writer` makes it again."""
        # A public class goes by its name in the package, so that it may move to another module.
        kind, room = type(self), package.__name__
        is_public = kind.__module__.startswith(room) and kind.__name__ in package.__all__
        path = f"{room}.{kind.__name__}" if is_public else class_path(self)
        return {"class_path": path, "init_args": self.config()}

    def can_read(self, side: Side) -> bool:
        """Tells whether every modality of a side is one that this source reads."""
        return bool(side.modalities) and side.modalities <= self.reads

    def prompt_states(self, sides: Sequence[Side]) -> Tensor:
        """Returns the hidden states at the ends of prompts, before anything is written.

        It costs a prefill and no generated token, so a gate may ask for it.

        Args:
            sides: B sides that `can_read` accepts.

        Returns:
            (B, H) float32.
        """
        raise ValueError(
            f"The writer {self.name or type(self).__name__!r} has no hidden state that could be "
            "read. Choose a gate state without `prompt_state`, or a writer that runs a model."
        )

    def identity(self) -> str:
        """Hash of all that shapes the rationales of this writer, for fingerprints."""
        return f"{stable_hash(sorted(self.spec().items()), bits=64):016x}"


class RationaleWriter(RationaleSource, ABC):
    """Writes rationales about sides.

    Attributes:
        concepts: concepts that its prompt names. A rationale about one of them may be copied
            from the prompt, so the caller drops and counts it as a leak.
    """

    concepts: frozenset[str] = frozenset()

    @abstractmethod
    def write(self, sides: Sequence[Side], seeds_BK: Tensor) -> list[list[Rationale]]:
        """Draws rationales; equal calls give equal results.

        Args:
            sides: B sides.
            seeds_BK: int64, one seed per draw; `GREEDY` asks for the greedy draw, `NO_DRAW` for
                none. A draw depends on its side and its seed, not on its neighbours.

        Returns:
            B lists, each in the order of its seeds; empty where the side cannot be read. Broken
            draws are among them, without an answer: `merge_drafts` drops and counts them.
        """

    def tuner(self, lora: LoraSettings, seed: int) -> ReplyTuner:
        """Makes a tuner, which fits a copy of this writer's model; the writer stays as it is.

        Args:
            lora: rank, scale and layers of the updates.
            seed: seed of their start.
        """
        raise ValueError(
            f"The writer {self.name or type(self).__name__!r} has no weights that could be fitted. "
            "Name a LanguageModelWriter in `tuned`."
        )

    @property
    def trained_facts(self) -> frozenset[str]:
        """Facts whose rationales this writer was fitted on; of most writers none."""
        return frozenset()

    def draw_identity(self) -> str:
        """Hash of what one draw depends on beside its side and seed: model, prompt and decoding.

        An earlier draw is found again by it. It may leave out what changes rounding alone, such as
        the number of draws that are decoded together.
        """
        return self.identity()

    def prompt_state_identity(self) -> str:
        """Hash of what `prompt_state` depends on: model, prompt, and the block that is read."""
        return self.identity()


class DrawingWriter(RationaleWriter, ABC):
    """Makes a list of single draws, whichever sides and seeds they belong to."""

    def write(self, sides: Sequence[Side], seeds_BK: Tensor) -> list[list[Rationale]]:
        """See `RationaleWriter.write`."""
        check_seeds(sides, seeds_BK)
        seeded_rows = [
            (row, seed)
            for row, side in enumerate(sides)
            if self.can_read(side)
            for seed in drawn_seeds(seeds_BK[row])
        ]

        # One call for all rows, since a model makes many draws at the cost of few.
        draws = self._draw([(sides[row], seed) for row, seed in seeded_rows])
        written: list[list[Rationale]] = [[] for _ in sides]
        for (row, _), rationale in zip(seeded_rows, draws, strict=True):
            if rationale is not None:
                written[row].append(rationale)
        return written

    @abstractmethod
    def _draw(self, seeded_sides: Sequence[tuple[Side, int]]) -> Sequence[Rationale | None]:
        """Makes a draw for each side and seed, in order; None where there is none.

        Args:
            seeded_sides: sides that can be read, each with a seed; a side stands once for each
                draw.
        """


def drawn_seeds(seeds_K: Tensor) -> list[int]:
    """The seeds of one side without their padding."""
    return [seed for seed in seeds_K.tolist() if seed != NO_DRAW]


def check_reads(reads: Collection[str]) -> frozenset[str]:
    """Returns the modalities that a writer is told to read; ValueError for any other."""
    if not reads or not set(reads) <= {"text", "image", "video"}:
        raise ValueError(f"reads {sorted(reads)}: expected some of text, image, video.")
    return frozenset(reads)


def check_seeds(sides: Sequence[Side], seeds_BK: Tensor) -> None:
    """Raises ValueError if the seeds do not belong to these sides."""
    if seeds_BK.ndim != 2 or len(seeds_BK) != len(sides):
        raise ValueError(
            f"seeds_BK has shape {tuple(seeds_BK.shape)}; expected ({len(sides)}, K): one row of "
            "seeds for each side, padded with NO_DRAW."
        )


def check_prompt_state(writer: RationaleSource, measured: Sequence[tuple[Side, Tensor]]) -> None:
    """Raises ValueError if the live writer's hidden states are not those that the gate learned."""
    for side, known_H in measured:
        live_H = writer.prompt_states([side])[0].cpu()
        # Stored states are float16, and batches of other sizes round differently.
        if live_H.shape != known_H.shape or (live_H - known_H).abs().max() > 0.02 * known_H.std():
            raise ValueError(
                f"The gate's writer {writer.name!r} has another hidden state about {side.text!r} "
                "than `rationales/` holds: give the gate the model, prompt and prompt_state_layer "
                "that wrote them."
            )
