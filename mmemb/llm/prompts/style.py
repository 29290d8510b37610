"""The style of prompts: settings by which a vision-language model is shown a side.

See docs/method.md section 6."""

from __future__ import annotations

import math
from ast import literal_eval
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import NoneType
from typing import Any, Literal

from mmemb.records.nearest_name import nearest

_TYPES: Mapping[str, tuple[tuple[type, ...], str]] = {
    "str": ((str,), "a text"),
    "bool": ((bool,), "true or false"),
    "int": ((int,), "a whole number"),
    "int | None": ((int, NoneType), "a whole number, or null"),
    "float": ((int, float), "a number"),
    "dict[str, Any]": ((Mapping,), "keys and values"),
}
"""Annotations of the fields below -> what they may hold."""


@dataclass(frozen=True)  # no slots, not final: jsonargparse refuses such defaults
class PromptStyle:
    """Settings of prompts; an embedder must keep those with which it was trained.

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
            `text` = it extends the side's text, for embedders that were trained to read
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
        for setting in fields(self):
            _check_type(setting.name, str(setting.type), getattr(self, setting.name))

        at_least_one(max_frames=self.max_frames, max_length=self.max_length)
        for name in ("min_pixels", "max_pixels", "max_frame_pixels"):
            if getattr(self, name) is not None:
                at_least_one(**{name: getattr(self, name)})

        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError(
                f"min_pixels {self.min_pixels} is more than max_pixels {self.max_pixels}: swap "
                "them, or leave one out."
            )

        # NaN fails this comparison too, as it must.
        if not 0 < self.frames_per_second < math.inf:
            raise ValueError(
                f"frames_per_second is {self.frames_per_second}; expected a number above 0."
            )

    @classmethod
    def from_mapping(cls, style: PromptStyle | Mapping[str, Any] | None) -> PromptStyle:
        """A style from the keys of a configuration.

        Args:
            style: keys and values, or a style; None = the defaults.

        Raises:
            ValueError: a key is unknown, or a value of another type or out of range.
        """
        if isinstance(style, PromptStyle):
            return style
        if not isinstance(style, Mapping | None):
            raise ValueError(
                f"style is {style!r:.60}; expected keys and values, such as {{max_length: 2048}}."
            )

        names = [setting.name for setting in fields(cls)]

        # Checked here: the error of the constructor would show no valid keys.
        for key in style or {}:
            if key not in names:
                raise ValueError(
                    f"style: unknown key {key!r:.100}.{nearest(str(key), names)} "
                    f"Valid here: {', '.join(sorted(names))}."
                )
        return cls(**(style or {}))


def at_least_one(**counts: int) -> None:
    """Checks settings that count something.

    Args:
        counts: value of each by its name.

    Raises:
        ValueError: one is no whole number, or below 1.
    """
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} is {value!r}; expected a whole number, at least 1.")


def _check_type(name: str, annotation: str, value: Any) -> None:
    if annotation.startswith("Literal"):
        choices = literal_eval(annotation.removeprefix("Literal"))
        fits, expected = value in choices, " or ".join(choices)
    else:
        types, expected = _TYPES[annotation]

        # In Python True is an int, but it is no count of pixels.
        fits = isinstance(value, types) and (bool in types or not isinstance(value, bool))
    if not fits:
        raise ValueError(f"{name} {value!r}: expected {expected}.")
