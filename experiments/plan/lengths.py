"""Counts the tokens of a side in each tower of a backbone, without loading weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from experiments.plan.models import clip_lengths
from mmemb.llm.decoding.tags import whole_text
from mmemb.llm.prompts.chat_prompt import PromptBuilder
from mmemb.llm.prompts.style import PromptStyle
from mmemb.records.inputs import Side
from mmemb.records.rationales import Rationale
from mmemb.storage.pretrained import load_pretrained
from mmemb.storage.tensor_files import quiet_loading

Lengths = Mapping[str, int]
"""Tower -> tokens."""


@final
@dataclass(frozen=True, slots=True)
class Tokens:
    """The lengths of the rows of one kind.

    Attributes:
        mean: tokens of a row.
        longest: tokens of the longest row; for a generated text its bound.
    """

    mean: float
    longest: int


NO_TOKENS = Tokens(0.0, 0)


def measured(rows: Sequence[Lengths]) -> dict[str, Tokens]:
    """Returns mean and longest by tower.

    >>> measured([{"text": 2}, {"text": 4}])
    {'text': Tokens(mean=3.0, longest=4)}
    """
    towers = dict.fromkeys(name for lengths in rows for name in lengths)
    columns = {name: [lengths.get(name, 0) for lengths in rows] for name in towers}
    return {name: Tokens(sum(c) / len(c), max(c)) for name, c in columns.items()}


class SideLengths(ABC):
    """Counts tokens as a backbone reads a side.

    Attributes:
        reads_pixels: True if pictures must be decoded for their sizes.
        one_sequence: True if the direct and the reasoned vector come from one sequence.
        longest_rationale: most tokens of a rationale.
    """

    reads_pixels = False
    one_sequence = False
    longest_rationale: int

    @abstractmethod
    def of(self, side: Side, rationale: Rationale | int | None = None) -> Lengths:
        """Returns the tokens by tower.

        Args:
            side: with pixels where `reads_pixels`.
            rationale: a rationale that is read with the side, or its length in tokens.
        """

    def media_tokens(self, side: Side) -> int:
        """Returns the tokens of media in the text tower; 0 where they do not depend on sizes."""
        return 0


@final
class PromptLengths(SideLengths):
    """Lengths of the prompts of a `VisionLanguageBackbone`, each of which is built once.

    Args:
        processor: of the model.
        style: the form of the prompts.
        longest_rationale: `max_rationale_tokens`.
    """

    reads_pixels = True

    def __init__(self, processor: Any, style: PromptStyle, longest_rationale: int) -> None:
        self.builder, self.longest_rationale = PromptBuilder(processor, style), longest_rationale
        self.one_sequence = style.rationale_in == "reply"
        # The side is kept too, since the id of a freed object may come again.
        self._lengths: dict[int, tuple[Side, int, int]] = {}

    def of(self, side: Side, rationale: Rationale | int | None = None) -> Lengths:
        # Pixels take most of the time, and a side is asked about alone and with its rationale.
        if id(side) not in self._lengths:
            prompt = self.builder.build(side)
            grids = [grid for name, grid in prompt.media.items() if name.endswith("grid_thw")]
            patches = sum(int(grid.prod(-1).sum()) for grid in grids)
            self._lengths[id(side)] = side, len(prompt), patches

        _, text, patches = self._lengths[id(side)]
        return {"text": text + self._reply(rationale), "vision": patches}

    def _reply(self, rationale: Rationale | int | None) -> int:
        if rationale is None or isinstance(rationale, int):
            return rationale or 0
        text = self.builder.plain(whole_text(rationale))
        ids = self.builder.tokenizer.encode(text, add_special_tokens=False)
        return min(len(ids), self.longest_rationale)

    def media_tokens(self, side: Side) -> int:
        if not side.media:
            return 0
        return self.of(side)["vision"] // self.builder.processor.image_processor.merge_size**2


@final
class JointLengths(SideLengths):
    """Lengths of the sequences of a `JointEncoder`.

    Args:
        arguments: of its constructor.
        tokens_each: tokens of a picture.
    """

    def __init__(self, arguments: Mapping[str, Any], tokens_each: int) -> None:
        from transformers import AutoTokenizer

        with quiet_loading():
            self._tokenizer: Any = load_pretrained(AutoTokenizer, str(arguments["text_model"]))
        self._tokens_each = tokens_each
        self._longest_text = int(arguments.get("max_text_tokens", 96))
        self.longest_rationale = int(arguments.get("max_rationale_tokens", 64))

    def of(self, side: Side, rationale: Rationale | int | None = None) -> Lengths:
        # The bound on text cuts the words, never the picture tokens before them.
        words = min(self._count(side.instruction) + self._count(side.text), self._longest_text)
        tokens = 2 + self._tokens_each * len(side.media) + words
        if rationale is None:
            return {"text": tokens}
        reply = rationale if isinstance(rationale, int) else self._count(rationale.plain)
        return {"text": tokens + 1 + min(reply, self.longest_rationale)}

    def _count(self, text: str) -> int:
        row = self._tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, verbose=False
        )
        return len(row["input_ids"])


@final
class ClipLengths(SideLengths):
    """Lengths of an `OpenClipBackbone`, whose texts and pictures all have one length.

    Args:
        config: of the model, in the form of open_clip.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._context, self._picture, _ = clip_lengths(config)
        self.longest_rationale = self._context

    def of(self, side: Side, rationale: Rationale | int | None = None) -> Lengths:
        # A rationale is a text of its own, and is padded to the context like every other.
        texts = bool(side.text or side.instruction) + (rationale is not None)
        return {"text": texts * self._context, "vision": len(side.media) * self._picture}


def processor_of(model: str, trust_remote_code: bool = False) -> Any:
    """Returns the processor of a model, or its tokenizer where it has no vision.

    Raises:
        FileNotFoundError: there is none that transformers can read.
    """
    from transformers import AutoProcessor

    try:
        with quiet_loading():
            return load_pretrained(AutoProcessor, model, trust_remote_code=trust_remote_code)
    except Exception as error:  # broken files can make a reader raise anything
        reason = str(error).split(". ")[0].splitlines()[0]
        raise FileNotFoundError(
            f"The model {Path(model)} has no tokenizer or processor that can be read "
            f"({reason}). Tokens are counted with it; put its files beside "
            "config.json (docs/plan.md says how they are fetched without the weights)."
        ) from None
