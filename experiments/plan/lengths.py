"""How many tokens a side takes in each tower of a backbone: tokenizers and arithmetic, no weights.

Pictures are counted from their sizes and the budgets of pixels; none passes through a processor.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from experiments.plan.work import resized, vision_tokens
from mmemb.llm.decoding.tags import whole_text
from mmemb.llm.prompts.chat_prompt import PromptBuilder
from mmemb.llm.prompts.style import PromptStyle
from mmemb.records.inputs import Media, Side
from mmemb.records.rationales import Rationale
from mmemb.storage.pretrained import load_pretrained
from mmemb.storage.tensor_files import quiet_loading

Lengths = Mapping[str, int]
"""Tower -> tokens."""


class SideLengths(ABC):
    """Counts tokens as a backbone reads a side.

    Attributes:
        reads_pixels: whether pictures must be decoded for their sizes.
        one_sequence: whether the direct and the reasoned vector come from one sequence.
        longest_rationale: tokens of a rationale at the most.
    """

    reads_pixels = False
    one_sequence = False
    longest_rationale: int

    @abstractmethod
    def of(self, side: Side, rationale: Rationale | int | None = None) -> Lengths:
        """Tokens by tower.

        Args:
            side: with pixels where `reads_pixels`.
            rationale: that is read with it; a number is its length in tokens.
        """

    def picture(self, media: Media) -> int:
        """Tokens of a picture in the text tower, where they depend on its size; else 0."""
        return 0


@final
class PromptLengths(SideLengths):
    """Of a `VisionLanguageBackbone`.

    Args:
        processor: of the model.
        style: how sides are put.
        longest_rationale: `max_rationale_tokens`.
    """

    reads_pixels = True

    def __init__(self, processor: Any, style: PromptStyle, longest_rationale: int) -> None:
        self.builder, self.longest_rationale = PromptBuilder(processor, style), longest_rationale
        self.one_sequence = style.rationale_in == "reply"

    def of(self, side: Side, rationale: Rationale | int | None = None) -> Lengths:
        builder, style = self.builder, self.builder.style
        text = len(builder.tokenizer(builder.text(side))["input_ids"])
        pictures = [self.picture(m) for m in side.media if m.kind == "image"]
        groups = self._groups([m for m in side.media if m.kind == "frame"])
        text += sum(pictures) - len(pictures)  # a picture's placeholder is one token already
        if groups:
            text += sum(groups) - 1 + self._times(len(groups), builder._frames(side))
        patches = (sum(pictures) + sum(groups)) * self._merged**2
        said = rationale if isinstance(rationale, int) else self._said(rationale)
        return {"text": min(text, style.max_length) + said, "vision": patches}

    def _said(self, rationale: Rationale | None) -> int:
        if rationale is None:
            return 0
        text = self.builder.plain(whole_text(rationale))
        ids = self.builder.tokenizer.encode(text, add_special_tokens=False)
        return min(len(ids), self.longest_rationale)

    @property
    def _merged(self) -> int:
        return int(self.builder.processor.image_processor.merge_size)

    def picture(self, media: Media) -> int:
        images, style = self.builder.processor.image_processor, self.builder.style
        factor = images.patch_size * images.merge_size
        least = style.min_pixels or images.size["shortest_edge"]
        most = style.max_pixels or images.size["longest_edge"]
        return vision_tokens(*resized(*_size(media), factor, least, most), factor)

    def _groups(self, media: list[Media]) -> list[int]:
        """Tokens of every group of frames that a model takes as one step of time."""
        if not media:
            return []
        style, videos = self.builder.style, self.builder.processor.video_processor
        count = min(len(media), style.max_frames)
        most = videos.size["longest_edge"] / count
        if style.max_frame_pixels is not None:
            most = min(most, style.max_frame_pixels)
        factor = videos.patch_size * videos.merge_size
        least = videos.size["shortest_edge"] / count
        each = vision_tokens(*resized(*_size(media[0]), factor, least, most), factor)
        return [each] * -(-count // videos.temporal_patch_size)

    def _times(self, groups: int, frames: list[Media]) -> int:
        """Models of the third generation get the time of each group, and marks around it."""
        if not type(self.builder.processor).__name__.startswith("Qwen3"):
            return 0
        size = self.builder.processor.video_processor.temporal_patch_size
        rate, last = self.builder.style.frames_per_second, len(frames) - 1
        tokens = 0
        for group in range(groups):
            times = [min(group * size + step, last) / rate for step in (0, size - 1)]
            said = f"<{sum(times) / 2:.1f} seconds>"
            tokens += 2 + len(self.builder.tokenizer(said)["input_ids"])
        return tokens


@final
class JointLengths(SideLengths):
    """Of a `JointEncoder`.

    Args:
        arguments: of its constructor.
        tokens_each: of a picture.
    """

    def __init__(self, arguments: Mapping[str, Any], tokens_each: int) -> None:
        from transformers import AutoTokenizer

        with quiet_loading():
            self._tokenizer: Any = load_pretrained(AutoTokenizer, str(arguments["text_model"]))
        self._tokens_each = tokens_each
        self._longest_text = int(arguments.get("max_text_tokens", 96))
        self.longest_rationale = int(arguments.get("max_rationale_tokens", 64))

    def of(self, side: Side, rationale: Rationale | int | None = None) -> Lengths:
        words = min(self._count(side.instruction) + self._count(side.text), self._longest_text)
        tokens = 2 + self._tokens_each * len(side.media) + words
        if rationale is None:
            return {"text": tokens}
        said = rationale if isinstance(rationale, int) else self._count(rationale.plain)
        return {"text": tokens + 1 + min(said, self.longest_rationale)}

    def _count(self, text: str) -> int:
        said = self._tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, verbose=False
        )
        return len(said["input_ids"])


@final
class ClipLengths(SideLengths):
    """Of an `OpenClipBackbone`, whose texts and pictures all have one length.

    Args:
        config: of the model, as open_clip has it.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        vision, text = config["vision_cfg"], config["text_cfg"]
        size, patch = vision.get("image_size", 224), vision.get("patch_size", 16)
        self._context = self.longest_rationale = int(text.get("context_length", 77))
        self._picture = (size // patch) ** 2 + 1

    def of(self, side: Side, rationale: Rationale | int | None = None) -> Lengths:
        texts = bool(side.text or side.instruction) + (rationale is not None)
        return {"text": texts * self._context, "vision": len(side.media) * self._picture}


def processor_of(model: str, trust_remote_code: bool = False) -> Any:
    """The processor of a model, or its tokenizer where it sees nothing."""
    from transformers import AutoProcessor

    try:
        with quiet_loading():
            return load_pretrained(AutoProcessor, model, trust_remote_code=trust_remote_code)
    except Exception as error:  # readers raise whatever the files make them raise
        raise FileNotFoundError(
            f"The model {Path(model)} has no tokenizer or processor that can be read "
            f"({_first_sentence(error)}). Tokens are counted with it; put its files beside "
            "config.json (docs/plan.md says how they are fetched without the weights)."
        ) from None


def _first_sentence(error: Exception) -> str:
    return str(error).split(". ")[0].splitlines()[0]


def _size(media: Media) -> tuple[int, int]:
    assert media.pixels is not None
    return media.pixels.shape[1], media.pixels.shape[2]
