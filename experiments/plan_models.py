"""What a configuration says of a model: its shape, how it reads a side, and in which precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from experiments.plan_lengths import (
    ClipLengths,
    JointLengths,
    PromptLengths,
    SideLengths,
    processor_of,
)
from mmemb.adapters import LoraSettings
from mmemb.backbones.chat_prompt import PromptStyle
from mmemb.model_sizes import (
    joint_shape,
    language_model_shape,
    open_clip_config,
    open_clip_shape,
    saved_backbone,
)
from mmemb.plan_layers import PRECISIONS
from mmemb.planning import ModelShape
from mmemb.shards import MANIFEST, ShardIndex

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
    """

    shape: ModelShape
    lengths: SideLengths
    width: int
    dtype: str = "float32"
    padded: bool = True
    tuned: ModelShape | None = None


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
    kind, arguments = spec["class_path"].rpartition(".")[2], dict(spec.get("init_args") or {})
    settings = lora_settings(lora)
    if kind == "load_backbone":
        return planned_backbone(saved_backbone(str(arguments["folder"])), settings, features)
    if kind == "JointEncoder":
        shape = joint_shape(arguments, settings)
        lengths = JointLengths(arguments, _tokens_each(features))
        tuned = joint_shape(arguments, PLAIN_LORA)
        return PlannedModel(shape=shape, lengths=lengths, width=_hidden(shape), tuned=tuned)
    if kind == "OpenClipBackbone":
        if settings:
            raise ValueError("model.lora is set, but OpenClipBackbone takes no LoRA: set it null.")
        config = open_clip_config(str(arguments["model"]))
        shape = open_clip_shape(str(arguments["model"]))
        return PlannedModel(shape=shape, lengths=ClipLengths(config), width=config["embed_dim"])
    if kind == "VisionLanguageBackbone":
        model, code = str(arguments["model"]), bool(arguments.get("trust_remote_code"))
        given = {"freeze_vision": arguments.get("freeze_vision", True), "trust_remote_code": code}
        shape = language_model_shape(model, lora=settings, **given)
        lengths = PromptLengths(
            processor_of(model, code),
            PromptStyle(**dict(arguments.get("style") or {})),
            int(arguments.get("max_rationale_tokens", 512)),
        )
        return PlannedModel(
            shape=shape,
            lengths=lengths,
            width=_hidden(shape),
            dtype=arguments.get("dtype", "float32"),
            padded="flash" not in str(arguments.get("attention")),
            tuned=language_model_shape(model, lora=PLAIN_LORA, **given),
        )
    raise ValueError(
        f"model.backbone.class_path {spec['class_path']!r} cannot be planned: expected one of "
        "JointEncoder, OpenClipBackbone, VisionLanguageBackbone, load_backbone."
    )


def lora_settings(given: Any) -> LoraSettings | None:
    """Plain data or an object of the configuration as `LoraSettings`."""
    if given is None or isinstance(given, LoraSettings):
        return given
    data = dict(given.get("init_args") or given)
    if isinstance(data.get("targets"), list):
        data["targets"] = tuple(data["targets"])
    return LoraSettings(**data)


def precision_of(dtype: str, trainer: str | None) -> str:
    """The key of `PRECISIONS` for weights of a type under a trainer's `precision`.

    >>> precision_of("float32", "bf16-mixed"), precision_of("float32", None)
    ('mixed', 'float32')
    """
    said = str(trainer or "32-true")
    if said.endswith("-mixed") and dtype == "float32":
        return "mixed"
    if said in ("bf16-true", "bf16", "16-true"):
        return "bfloat16"
    if dtype not in PRECISIONS:
        raise ValueError(f"dtype {dtype!r}: expected one of float32, bfloat16, float16.")
    return dtype


def _hidden(shape: ModelShape) -> int:
    return shape.towers["text"].blocks[0].hidden


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
