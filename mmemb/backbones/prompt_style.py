"""How sides are put to a vision-language model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)  # no slots, not final: jsonargparse refuses such defaults
class PromptStyle:
    """How sides are put to a model; what an embedder was trained with must be kept.

    Attributes:
        system: of every conversation; empty = no system turn.
        instruction_in: where a side's instruction goes: in place of `system`, or before the text.
        default_instruction: of sides that have none (most candidates); empty = none.
        chat: whether the model's chat template is used; without it a prompt is the marks of the
            side's media, its instruction and its text, one space between, as VLM2Vec has it.
        image_mark: stands for a picture where there is no chat template.
        video_mark: the same for a clip.
        positions: `model` = as the model counts them, in time, height and width; `plain` = one by
            one, as models were trained whose prompts lacked the marks of pictures (VLM2Vec).
        rationale_in: `reply` = a rationale stands where the model answers, behind the prompt
            (METHOD 6); `text` = it extends the side's text, for embedders that were trained to read
            nothing behind their prompt.
        suffix: text behind the generation prompt, such as an end token that is pooled.
        add_generation_prompt: whether the turn of the model is opened.
        template_arguments: for the template, such as `enable_thinking: false`.
        min_pixels: smaller pictures are enlarged; None = as the processor says.
        max_pixels: larger pictures are reduced; None = as the processor says.
        max_frames: of a clip, evenly spaced ones if it has more.
        max_frame_pixels: as `max_pixels`, of a frame.
        frames_per_second: what a model that reads times is told about a clip's frames.
        max_length: longest prompt in tokens.
        long_text: what happens to a text that makes its prompt longer: it is cut at its end
            (`truncate`) or refused (`error`). Pictures are never cut: they are an error.
    """

    system: str = ""
    instruction_in: Literal["system", "user"] = "user"
    default_instruction: str = ""
    chat: bool = True
    image_mark: str = "<|image_pad|>"
    video_mark: str = "<|video_pad|>"
    positions: Literal["model", "plain"] = "model"
    rationale_in: Literal["reply", "text"] = "reply"
    suffix: str = ""
    add_generation_prompt: bool = True
    template_arguments: dict[str, Any] = field(default_factory=dict)
    min_pixels: int | None = None
    max_pixels: int | None = None
    max_frames: int = 16
    max_frame_pixels: int | None = None
    frames_per_second: float = 2.0
    max_length: int = 2048
    long_text: Literal["truncate", "error"] = "truncate"

    def __post_init__(self) -> None:
        if self.instruction_in not in ("system", "user"):
            raise ValueError(f"instruction_in {self.instruction_in!r}: expected system or user.")
        if self.rationale_in not in ("reply", "text"):
            raise ValueError(f"rationale_in {self.rationale_in!r}: expected reply or text.")
        if self.positions not in ("model", "plain"):
            raise ValueError(f"positions {self.positions!r}: expected model or plain.")
        if self.long_text not in ("truncate", "error"):
            raise ValueError(f"long_text {self.long_text!r}: expected truncate or error.")
        if min(self.max_frames, self.max_length) < 1 or not self.frames_per_second > 0:
            raise ValueError(
                f"max_frames {self.max_frames}, max_length {self.max_length}, frames_per_second "
                f"{self.frames_per_second}: expected positive numbers."
            )
