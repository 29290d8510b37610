"""What a configuration says of a backbone: its shape, and how it reads a side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
from experiments.plan.model_sizes import (
    joint_shape,
    language_model_shape,
    open_clip_config,
    open_clip_shape,
    saved_backbone,
)
from experiments.plan.settings import class_of, record
from mmemb.llm.lora import LoraSettings
from mmemb.llm.prompts.style import PromptStyle
from mmemb.storage.manifests import MANIFEST
from mmemb.storage.shard_index import ShardIndex

PLAIN_LORA = LoraSettings()
"""What is proposed where a model does not fit."""

_TOWER_TOKENS = 6
"""Of a picture, by `EfficientNetTower`."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedModel:
    """A model as far as a plan needs it.

    Attributes:
        shape: of its layers.
        lengths: how many tokens a side takes.
        width: of its vectors.
        dtype: of its weights.
        padded: whether attention gets a mask.
        tuned: its shape with LoRA updates in place of its weights; None = it takes none.
        cached_pictures: whose tokens are kept in host memory.
    """

    shape: ModelShape
    lengths: SideLengths
    width: int
    dtype: str = "float32"
    padded: bool = True
    tuned: ModelShape | None = None
    cached_pictures: int = 0


def planned_backbone(
    spec: Mapping[str, Any], lora: Any = None, features: str | None = None
) -> PlannedModel:
    """Of `{class_path, init_args}` of a backbone.

    Args:
        spec: as in a configuration; `load_backbone` is followed into its folder.
        lora: `LoraSettings`, as an object or as plain data; None = none.
        features: folder of cached features.

    Raises:
        ValueError: it is no backbone whose layers are known.
    """
    kind, arguments = class_of(spec), spec.get("init_args") or {}
    settings = record(LoraSettings, lora)
    if kind == "load_backbone":
        return planned_backbone(saved_backbone(str(arguments["folder"])), settings, features)
    if kind == "JointEncoder":
        return _joint(arguments, settings, features)
    if kind == "OpenClipBackbone":
        if settings:
            raise ValueError("model.lora is set, but OpenClipBackbone takes no LoRA: set it null.")
        return _open_clip(str(arguments["model"]))
    if kind == "VisionLanguageBackbone":
        return _vision_language(arguments, settings)
    raise ValueError(
        f"model.backbone.class_path {spec['class_path']!r} cannot be planned: expected one of "
        "JointEncoder, OpenClipBackbone, VisionLanguageBackbone, load_backbone."
    )


def _joint(
    arguments: Mapping[str, Any], lora: LoraSettings | None, features: str | None
) -> PlannedModel:
    shape = joint_shape(arguments, lora)
    lengths = JointLengths(arguments, _tokens_each(features))
    tuned = joint_shape(arguments, PLAIN_LORA)
    return PlannedModel(shape=shape, lengths=lengths, width=shape.hidden, tuned=tuned)


def _open_clip(model: str) -> PlannedModel:
    config = open_clip_config(model)
    lengths = ClipLengths(config)
    return PlannedModel(shape=open_clip_shape(model), lengths=lengths, width=config["embed_dim"])


def _vision_language(arguments: Mapping[str, Any], lora: LoraSettings | None) -> PlannedModel:
    model, code = str(arguments["model"]), bool(arguments.get("trust_remote_code"))
    given = {"freeze_vision": arguments.get("freeze_vision", True), "trust_remote_code": code}
    shape = language_model_shape(model, lora=lora, **given)
    style = record(PromptStyle, arguments.get("style")) or PromptStyle()
    most = int(arguments.get("max_rationale_tokens", 512))
    return PlannedModel(
        shape=shape,
        lengths=PromptLengths(processor_of(model, code), style, most),
        width=shape.hidden,
        dtype=arguments.get("dtype", "float32"),
        padded="flash" not in str(arguments.get("attention")),
        tuned=language_model_shape(model, lora=PLAIN_LORA, **given),
        cached_pictures=int(arguments.get("cached_pictures") or 0),
    )


def _tokens_each(features: str | None) -> int:
    """Of a picture: as the features have it, if there are any yet."""
    if features is None or not (Path(features) / MANIFEST).is_file():
        return _TOWER_TOKENS
    from datamodules.decode import decode_array

    index = ShardIndex.open(features, verify=False)
    if not index.entries:
        return _TOWER_TOKENS
    first = index.entries[0]
    return int(decode_array(index.read(first, {"npy"})["npy"], f"{features} {first.key}").shape[0])
