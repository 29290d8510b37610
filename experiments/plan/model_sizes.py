"""The shapes of models, from their configuration alone: built on the meta device, without weights.

Which layers there are is read off the modules, by the names that their libraries give them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from experiments.plan.layer_shapes import tower, tower_of
from experiments.plan.memory import ModelShape
from mmemb.llm.lora import LoraSettings
from mmemb.records.text import quote
from mmemb.storage.pretrained import load_pretrained
from mmemb.storage.tensor_files import quiet_loading


def model_on_meta(model: str, trust_remote_code: bool = False, **settings: Any) -> nn.Module:
    """A model of transformers without weights, as `model_loading.load_model` would choose it.

    Args:
        model: folder or hub id, of which only the configuration is read.
        trust_remote_code: whether code that comes with the model may run.
        settings: `add_pooling_layer=False` for a text encoder.
    """
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
    )

    code = {"trust_remote_code": trust_remote_code}
    try:
        with quiet_loading(), torch.device("meta"):
            config = load_pretrained(AutoConfig, model, **code)
            sees = type(config) in AutoModelForImageTextToText._model_mapping
            kind = AutoModelForImageTextToText if sees else AutoModelForCausalLM
            return (AutoModel if settings else kind).from_config(config, **code, **settings)  # type: ignore[no-any-return]
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"The configuration of the model {model} cannot be read: {quote(error)} Give the "
            "folder with its config.json, tokenizer and processor (docs/plan.md), or a hub id."
        ) from None


def language_model_shape(
    model: str,
    *,
    freeze_vision: bool = True,
    trained: bool = True,
    lora: LoraSettings | None = None,
    trust_remote_code: bool = False,
) -> ModelShape:
    """Of a language or vision-language model; as `VisionLanguageBackbone` trains it.

    Args:
        model: folder or hub id.
        freeze_vision: whether all but language model and head is frozen.
        trained: False for workers and judges.
        lora: updates of the language model, in place of its weights.
        trust_remote_code: whether code that comes with the model may run.
    """
    whole: Any = model_on_meta(model, trust_remote_code)
    decoder, head = whole.get_decoder(), whole.get_output_embeddings()
    inside = {id(p) for part in (decoder, head) for p in part.parameters()}
    learns = [p for p in whole.parameters() if id(p) in inside or not freeze_vision]
    heads = whole.config.get_text_config().num_attention_heads
    text = tower(decoder, heads, trained=trained)
    towers, deeper = {"text": text}, ()
    if (visual := _visual(whole)) is not None:
        vision_heads = whole.config.vision_config.num_heads
        seen = trained and not freeze_vision and lora is None
        towers["vision"] = tower(visual, vision_heads, trained=seen)
        deeper = getattr(whole.config.vision_config, "deepstack_visual_indexes", None) or ()
    return ModelShape(
        total=_count(whole.parameters()),
        trainable=_count(learns) if trained and lora is None else 0,
        towers=towers,
        updates=lora_count(decoder, lora) if lora else 0,
        rank=lora.rank if lora else 0,
        vocabulary=head.weight.shape[0],
        picture_states=1 + len(deeper),
    )


def joint_shape(arguments: Mapping[str, Any], lora: LoraSettings | None = None) -> ModelShape:
    """Of a `JointEncoder`, by its constructor's arguments; those left out have its defaults."""
    from mmemb.backbones.tower import EfficientNetTower

    text: Any = model_on_meta(str(arguments["text_model"]), add_pooling_layer=False)
    hidden = text.config.hidden_size
    feature = int(arguments.get("feature_dim", EfficientNetTower.feature_dim))
    thumbnail = int(arguments.get("thumbnail_dim", EfficientNetTower.thumbnail_dim))
    projectors = sum(2 * w + (w + 1) * hidden for w in (feature, thumbnail) if w)
    new = projectors + (1 + int(arguments.get("max_frames", 16))) * hidden + hidden
    words = _count(text.get_input_embeddings().parameters())
    total = _count(text.parameters()) + new
    trainable = new if lora else total - words
    if arguments.get("tower"):
        total += efficient_net_parameters()
    # The norm behind the embeddings keeps its input, the mean over tokens the last states.
    read = tower(text, text.config.num_attention_heads, trained=True, outside=2)
    return ModelShape(
        total=total,
        trainable=trainable,
        towers={"text": read},
        updates=lora_count(text, lora) if lora else 0,
        rank=lora.rank if lora else 0,
    )


def open_clip_config(name: str) -> dict[str, Any]:
    """What open_clip builds a model from.

    Args:
        name: of the model, or the path of its JSON config.
    """
    import open_clip

    from mmemb.backbones.open_clip import _read_spec

    if name.endswith(".json"):
        return _read_spec(Path(name))["model_cfg"]  # type: ignore[no-any-return]
    config = open_clip.get_model_config(name)
    if config is None:
        raise ValueError(
            f"open_clip knows no model {name!r}; see open_clip.list_models(), or give the path of "
            "a JSON config in backbone.init_args.model."
        )
    return config  # type: ignore[no-any-return]


def open_clip_shape(name: str) -> ModelShape:
    """Of an `OpenClipBackbone`, by the name of its model or the path of its JSON config."""
    import open_clip

    config = open_clip_config(name)
    settings = {k: v for k, v in config.items() if k not in ("custom_text", "hf_tokenizer_name")}
    custom = config.get("custom_text") or "hf_model_name" in config["text_cfg"]
    kind = open_clip.model.CustomTextCLIP if custom else open_clip.model.CLIP
    with torch.device("meta"):
        model: Any = kind(**settings)
    text = model.text if custom else model
    vision, words = config["vision_cfg"], config["text_cfg"]
    text_blocks = [m for m in _open_clip_blocks(text) if not _within(m, model.visual)]
    seen_blocks = _open_clip_blocks(model.visual)
    vision_heads = vision.get("width", 768) // vision.get("head_width", 64)
    return ModelShape(
        total=_count(model.parameters()),
        trainable=_count(
            p for n, p in model.named_parameters() if n not in ("logit_scale", "logit_bias")
        ),
        towers={
            "text": tower_of(text_blocks, words.get("heads", 8), trained=True, outside=1),
            "vision": tower_of(seen_blocks, vision_heads, trained=True, outside=2),
        },
    )


def lora_count(model: nn.Module, settings: LoraSettings) -> int:
    """Parameters of the updates that `attach_lora` makes: rank times both widths of each layer.

    >>> layers = nn.ModuleDict({"q": nn.Linear(4, 6), "v": nn.Linear(4, 2)})
    >>> lora_count(layers, LoraSettings(rank=2))
    32
    >>> lora_count(layers, LoraSettings(rank=2, targets=("v",)))
    12
    """
    targets = settings.targets

    def is_tuned(name: str) -> bool:
        if isinstance(targets, str):
            return targets == "all-linear" or re.fullmatch(targets, name) is not None
        return any(name == target or name.endswith(f".{target}") for target in targets)

    found = [m for n, m in model.named_modules() if isinstance(m, nn.Linear) and is_tuned(n)]
    if not found:
        raise ValueError(
            f"LoRA targets {targets!r} do not fit this model: no linear layer has such a name. "
            "Set model.init_args.lora.targets to all-linear, or to name endings such as [q_proj]."
        )
    return sum(settings.rank * (m.in_features + m.out_features) for m in found)


def _visual(model: Any) -> nn.Module | None:
    return next((m for n, m in model.named_modules() if n.split(".")[-1] == "visual"), None)


def _open_clip_blocks(model: nn.Module) -> list[nn.Module]:
    numbered = re.compile(r"(^|\.)(resblocks|blocks)\.\d+$")
    return [m for name, m in model.named_modules() if numbered.search(name)]


def _within(module: nn.Module, outer: nn.Module) -> bool:
    return any(module is found for found in outer.modules())


def efficient_net_parameters() -> int:
    """Of `EfficientNetTower`, all frozen."""
    import timm

    with torch.device("meta"):
        return _count(timm.create_model("tf_efficientnet_lite0", num_classes=0).parameters())


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() for p in _distinct(parameters))


def _distinct(parameters: Iterable[nn.Parameter]) -> Iterator[nn.Parameter]:
    seen: set[int] = set()
    for parameter in parameters:
        if id(parameter) not in seen:
            seen.add(id(parameter))
            yield parameter


def saved_backbone(folder: str) -> dict[str, Any]:
    """`{class_path, init_args}` of a folder that `Backbone.save_pretrained` wrote; no weights.

    Raises:
        FileNotFoundError: the stage that writes it has not run yet.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} not found: model.backbone is one that an earlier stage leaves, which has "
            "not run. Run it, or plan with the class itself: --config "
            "experiments/configs/backbone/joint.yaml."
        )
    from mmemb.backbones.base import saved_spec

    return saved_spec(folder)
