"""The backbone that a configuration names: its shape, and the lengths of what it reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, final

from experiments.plan.lengths import (
    ClipLengths,
    JointLengths,
    PromptLengths,
    SideLengths,
    processor_of,
)
from experiments.plan.memory import ModelShape
from experiments.plan.models import (
    joint_shape,
    language_model_shape,
    open_clip_config,
    open_clip_shape,
)
from experiments.plan.settings import class_of, record
from mmemb.llm.lora import LoraSettings
from mmemb.llm.prompts.style import PromptStyle
from mmemb.storage.manifests import MANIFEST
from mmemb.storage.shard_index import ShardIndex

PLAIN_LORA = LoraSettings()
"""The updates that are proposed where a model does not fit."""

_TOWER_TOKENS = 6
"""Tokens of a picture, by `EfficientNetTower`."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedBackbone:
    """A backbone as far as a plan needs it.

    Attributes:
        shape: of its model.
        lengths: counts the tokens of a side.
        dtype: of its weights.
        padded: True if attention gets a mask.
        tuned: makes the shape with LoRA updates in place of weights; None = LoRA is not possible.
        cached_pictures: how many pictures' tokens are kept in host memory.
    """

    shape: ModelShape
    lengths: SideLengths
    dtype: str = "float32"
    padded: bool = True
    tuned: Callable[[], ModelShape] | None = None
    cached_pictures: int = 0


def planned_backbone(
    spec: Mapping[str, Any], lora: Any = None, features: str | None = None
) -> PlannedBackbone:
    """Returns the backbone that a configuration names.

    Args:
        spec: its `{class_path, init_args}`; `load_backbone` is followed into its folder.
        lora: `LoraSettings`, as an object or as plain data; None = none.
        features: folder of cached features.

    Raises:
        ValueError: the backbone's class cannot be planned.
    """
    kind, arguments = class_of(spec), spec.get("init_args") or {}
    settings = record(LoraSettings, lora)

    # A saved folder names the class and arguments of its backbone, which are planned in its place.
    if kind == "load_backbone":
        return planned_backbone(saved_backbone(str(arguments["folder"])), settings, features)

    if kind == "JointEncoder":
        return _joint(arguments, settings, features)

    if kind == "OpenClipBackbone":
        if settings:
            raise ValueError("model.lora is set, but OpenClipBackbone takes no LoRA: set it null.")
        model = str(arguments["model"])
        return PlannedBackbone(
            shape=open_clip_shape(model), lengths=ClipLengths(open_clip_config(model))
        )

    if kind == "VisionLanguageBackbone":
        return _vision_language(arguments, settings)

    raise ValueError(
        f"model.backbone.class_path {spec['class_path']!r} cannot be planned: expected one of "
        "JointEncoder, OpenClipBackbone, VisionLanguageBackbone, load_backbone."
    )


def _joint(
    arguments: Mapping[str, Any], lora: LoraSettings | None, features: str | None
) -> PlannedBackbone:
    shape = joint_shape(arguments, lora)
    lengths = JointLengths(arguments, _tokens_each(features))
    tuned = partial(joint_shape, arguments, PLAIN_LORA)
    return PlannedBackbone(shape=shape, lengths=lengths, tuned=tuned)


def _vision_language(arguments: Mapping[str, Any], lora: LoraSettings | None) -> PlannedBackbone:
    model, code = str(arguments["model"]), bool(arguments.get("trust_remote_code"))

    # Both shapes, with and without updates, are of the same frozen parts.
    common = {"freeze_vision": arguments.get("freeze_vision", True), "trust_remote_code": code}
    shape = language_model_shape(model, lora=lora, **common)

    # Flash attention takes rows without padding, and so needs no mask.
    style = record(PromptStyle, arguments.get("style")) or PromptStyle()
    most = int(arguments.get("max_rationale_tokens", 512))
    return PlannedBackbone(
        shape=shape,
        lengths=PromptLengths(processor_of(model, code), style, most),
        dtype=arguments.get("dtype", "float32"),
        padded="flash" not in str(arguments.get("attention")),
        tuned=partial(language_model_shape, model, lora=PLAIN_LORA, **common),
        cached_pictures=int(arguments.get("cached_pictures") or 0),
    )


def _tokens_each(features: str | None) -> int:
    """Returns the tokens of a picture: those of the cached features, if there are any yet."""
    from datamodules.decode import decode_array

    if features is None or not (Path(features) / MANIFEST).is_file():
        return _TOWER_TOKENS

    # All pictures of a features folder went through the same tower.
    index = ShardIndex.open(features, verify=False)
    if not index.entries:
        return _TOWER_TOKENS
    first = index.entries[0]
    return int(decode_array(index.read(first, {"npy"})["npy"], f"{features} {first.key}").shape[0])


def saved_backbone(folder: str) -> dict[str, Any]:
    """Returns `{class_path, init_args}` of a folder of `Backbone.save_pretrained`; no weights.

    Raises:
        FileNotFoundError: the stage that writes it has not run yet.
    """
    from mmemb.backbones.base import saved_spec

    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} not found: model.backbone is one that an earlier stage leaves, which has "
            "not run. Run it, or plan with the class itself: --config "
            "experiments/configs/backbone/joint.yaml."
        )
    return saved_spec(folder)
