"""Makes the prompt of a vision-language model from a side, by the model's template and processor.

The prompt is the same at every depth (docs/method.md section 6): it ends where the model would
begin to answer, and nothing in it says whether an answer will follow. Shapes: L tokens.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from mmemb.llm.prompts.chat_template import conversation_text
from mmemb.llm.prompts.pictures import bounds_whole_clips, clip_of, pixels_of
from mmemb.llm.prompts.special_tokens import as_text, media_marks
from mmemb.llm.prompts.style import PromptStyle
from mmemb.records.inputs import Media, Side

_PER_TOKEN = ("mm_token_type_ids", "token_type_ids")
_MOST_THREADS = 8
_THINKING = re.compile(r"<think>\s*$")
"""Templates of models that always think put this behind the generation prompt."""


@final
@dataclass(frozen=True, slots=True)
class Prompt:
    """One side as a model reads it, without padding.

    Attributes:
        ids: L tokens.
        kinds: further outputs of the processor for every token, (L,) each.
        media: pixels and grids; those of several prompts are joined along the first axis.
        pictures: digests of the images in `media`, in order.
    """

    ids: tuple[int, ...]
    kinds: Mapping[str, Tensor] = field(default_factory=dict)
    media: Mapping[str, Tensor] = field(default_factory=dict)
    pictures: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def followed_by(self, ids: Sequence[int]) -> Prompt:
        """Returns the prompt with more text tokens behind it."""
        zeros = torch.zeros(len(ids), dtype=torch.long)
        kinds = {name: torch.cat([kind, zeros.to(kind)]) for name, kind in self.kinds.items()}
        return Prompt((*self.ids, *ids), kinds, self.media, self.pictures)


@final
class PromptBuilder:
    """Turns sides into prompts.

    Args:
        processor: processor of the model, with a chat template.
        style: wording and limits of the prompts.

    Raises:
        ValueError: the processor has no chat template.
    """

    def __init__(self, processor: Any, style: PromptStyle) -> None:
        self.processor, self.style = processor, style
        self.tokenizer = getattr(processor, "tokenizer", processor)

        style_marks = set() if style.chat else {style.image_mark, style.video_mark} - {""}
        self.marks = media_marks(processor) | style_marks
        has_template = getattr(processor, "chat_template", None) or self.tokenizer.chat_template
        if style.chat and not has_template:
            raise ValueError(
                "The model's processor has no chat template, so no prompt can be made. Use an "
                "instruction-tuned model, or put a chat_template.jinja into its folder."
            )

    @property
    def modalities(self) -> frozenset[str]:
        """The modalities that the processor can read."""
        kinds = {"image": "image_processor", "video": "video_processor"}
        reads = {k for k, name in kinds.items() if getattr(self.processor, name, None) is not None}
        return frozenset({"text"} | reads)

    def build(self, side: Side, ending: str = "") -> Prompt:
        """Makes the prompt of a side; a text that is too long is cut.

        Args:
            side: instruction, text and media.
            ending: text behind the prompt, which counts towards its length.

        Raises:
            ValueError: the prompt is too long, and must not be cut or is still too long when cut.
        """
        prompt = self._build(side, ending)
        if (excess := len(prompt) - self.style.max_length) <= 0:
            return prompt

        if self.style.long_text == "error":
            raise ValueError(
                f"A prompt has {len(prompt)} tokens, more than max_length {self.style.max_length} "
                f"(text {side.text[:60]!r}): raise it, or set long_text: truncate."
            )

        # Only the side's text is cut; a template, a suffix and pictures must stay whole.
        ids = self.tokenizer.encode(self.plain(side.text), add_special_tokens=False)
        while ids and len(prompt) > self.style.max_length:
            ids = ids[: max(0, len(ids) - excess)]
            shorter = self.tokenizer.decode(ids, skip_special_tokens=True)
            prompt = self._build(replace(side, text=shorter), ending)
            excess = max(1, len(prompt) - self.style.max_length)  # a cut word may become two

        if len(prompt) > self.style.max_length:
            raise ValueError(
                f"A prompt has {len(prompt)} tokens without its text, more than max_length "
                f"{self.style.max_length}: {len(side.media)} picture(s) or frame(s) and the "
                "instruction leave no room. Lower max_pixels or max_frames, or raise max_length."
            )
        return prompt

    def num_tokens(self, side: Side) -> int:
        """Counts the tokens of a side's prompt, before any cut."""
        return len(self._build(side, ""))

    def build_all(self, sides: Sequence[Side]) -> list[Prompt]:
        """Makes the prompts of many sides, several pictures at once.

        A picture of a megapixel takes 40 ms, longer than a fast device needs to read its tokens.
        """
        threads = min(_MOST_THREADS, os.cpu_count() or 1, sum(bool(side.media) for side in sides))
        if threads < 2:
            return [self.build(side) for side in sides]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(self.build, sides))

    def text(self, side: Side, ending: str = "") -> str:
        """Returns the prompt as text, with a placeholder for each picture or clip."""
        side = replace(side, text=self.plain(side.text), instruction=self.plain(side.instruction))
        prompt = self.render(self._messages(side)) if self.style.chat else self._unframed(side)
        return prompt + self.style.suffix + ending

    def plain(self, text: str) -> str:
        """Returns a text of the data changed so that nothing in it is a special token."""
        return as_text(text, self.tokenizer, self.marks)

    def _unframed(self, side: Side) -> str:
        style = self.style
        self._check(side)

        parts = [style.image_mark for media in side.media if media.kind == "image"]
        parts += [style.video_mark] if self._frames(side) else []
        parts += [side.instruction or style.default_instruction, side.text]
        return " ".join(part for part in parts if part).replace(" \n", "\n")

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Returns a conversation as text, by the model's template; an open `<think>` is removed."""
        if self.modalities == {"text"}:  # templates of language models know no parts
            messages = [
                {**message, "content": "".join(part["text"] for part in message["content"])}
                for message in messages
            ]

        style = self.style
        rendered = conversation_text(
            self.processor, messages, style.add_generation_prompt, **style.template_arguments
        )
        return _THINKING.sub("", rendered)

    def content(self, side: Side, text: str) -> list[dict[str, Any]]:
        """Returns the parts of a turn: pictures, then the clip, then text."""
        self._check(side)
        parts = [{"type": "image"} for m in side.media if m.kind == "image"]
        parts += [{"type": "video"}] if self._frames(side) else []
        return [*parts, *([{"type": "text", "text": text}] if text else [])]

    def _check(self, side: Side) -> None:
        if missing := sorted(side.modalities - self.modalities):
            reads = ", ".join(sorted(self.modalities, reverse=True))
            raise ValueError(
                f"The model reads {reads} only, but a side (text {side.text[:60]!r}) holds "
                f"{', '.join(missing)}: take a model that reads it, or leave such sides out."
            )

    def _build(self, side: Side, ending: str) -> Prompt:
        return self.read(self.text(side, ending), side)

    def read(self, text: str, side: Side) -> Prompt:
        """Turns text into tokens; it has a placeholder for each picture and clip of the side."""
        pictures = [pixels_of(m) for m in side.media if m.kind == "image"]

        frames = [pixels_of(m) for m in self._frames(side)]
        inputs: dict[str, Any] = {"text": [text], "return_tensors": "pt"}
        if pictures:
            bounds = self.image_bounds(self.style.max_pixels)
            inputs |= {"images": pictures, "images_kwargs": bounds}

        if frames:
            least = getattr(self.processor.video_processor, "temporal_patch_size", None) or 1
            settings = self._clip(len(frames), max(len(frames), least))
            inputs |= {"videos": [clip_of(frames, least)], "videos_kwargs": settings}

        # One prompt needs no padding, so its mask is all ones; batches make their own.
        encoded = dict(self.processor(**inputs))
        encoded.pop("attention_mask", None)

        ids = tuple(encoded.pop("input_ids")[0].tolist())
        kinds = {name: encoded.pop(name)[0] for name in _PER_TOKEN if name in encoded}

        if self.style.positions == "plain":
            kinds.pop("mm_token_type_ids", None)  # with it, models count positions by axis

        media = {name: value for name, value in encoded.items() if isinstance(value, Tensor)}
        digests = tuple(m.digest for m in side.media if m.kind == "image")
        return Prompt(ids, kinds, media, digests)

    def _messages(self, side: Side) -> list[dict[str, Any]]:
        style, instruction = self.style, side.instruction or self.style.default_instruction
        in_system = style.instruction_in == "system"

        system = instruction if in_system and instruction else style.system
        lines = [instruction] if instruction and not in_system else []

        content = self.content(side, "\n".join([*lines, *([side.text] if side.text else [])]))
        messages = [{"role": "system", "content": [{"type": "text", "text": system}]}]
        return [*(messages if system else ()), {"role": "user", "content": content}]

    def _frames(self, side: Side) -> list[Media]:
        frames = [media for media in side.media if media.kind == "frame"]
        if len(frames) <= self.style.max_frames:
            return frames

        # Evenly spaced from the first frame to the last; a single one is the first.
        places = np.linspace(0, len(frames) - 1, self.style.max_frames).astype(int)
        return [frames[place] for place in places]

    def image_bounds(self, most: int | None) -> dict[str, Any]:
        """Returns bounds on pixels in the form of Qwen's processors; empty if the style sets none.

        Args:
            most: most pixels of a picture; None = the processor's bound.

        Raises:
            ValueError: the processor has no such bounds.
        """
        if most is None and self.style.min_pixels is None:
            return {}

        usual = dict(self.processor.image_processor.size)
        if not {"shortest_edge", "longest_edge"} <= usual.keys():
            raise ValueError(
                f"The model's processor bounds pictures by {sorted(usual)}, not by their pixels: "
                "leave min_pixels and max_pixels out."
            )

        # The processor needs both bounds, so one that is not set gets the processor's value.
        least = self.style.min_pixels or usual["shortest_edge"]
        return {"size": {"shortest_edge": least, "longest_edge": most or usual["longest_edge"]}}

    def _clip(self, num_frames: int, num_shown: int) -> dict[str, Any]:
        """Returns the processor's settings for a clip of `num_frames`, filled up to `num_shown`.

        The last frame is repeated at its own time, as in clips that processors fill up themselves.
        """
        from transformers.video_utils import VideoMetadata

        metadata = VideoMetadata(
            total_num_frames=num_shown,
            fps=self.style.frames_per_second,
            frames_indices=[min(frame, num_frames - 1) for frame in range(num_shown)],
        )

        # Frames were chosen before: the processor must not sample them a second time.
        settings: dict[str, Any] = {"do_sample_frames": False, "video_metadata": [metadata]}

        if self.style.max_frame_pixels is not None:
            videos = self.processor.video_processor
            times = num_shown if bounds_whole_clips(videos) else 1
            most = {"longest_edge": self.style.max_frame_pixels * times}
            settings["size"] = dict(videos.size) | most
        return settings
