"""Models without weights, built on the meta device from their configuration alone: their sizes, and
their towers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from experiments.plan.memory import ModelShape
from experiments.plan.towers import Call, Inputs, Tower, fake
from mmemb.llm.loading import outside_of_text
from mmemb.llm.lora import LoraSettings, attach_lora, lora_parameters
from mmemb.records.text import quote
from mmemb.storage.pretrained import load_pretrained
from mmemb.storage.tensor_files import quiet_loading


def model_on_meta(model: str, trust_remote_code: bool = False, **settings: Any) -> nn.Module:
    """Returns a model of transformers without weights, of the class that `load_model` chooses.

    Args:
        model: folder or hub id, of which only the configuration is read.
        trust_remote_code: whether code that comes with the model may run.
        settings: `add_pooling_layer=False` for a text encoder.

    Raises:
        FileNotFoundError: there is no configuration that transformers can read.
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
            module = (AutoModel if settings else kind).from_config(config, **code, **settings)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"The configuration of the model {model} cannot be read: {quote(error)} Give the "
            "folder with its config.json, tokenizer and processor (docs/plan.md), or a hub id."
        ) from None

    # Neither training nor embedding keeps keys and values.
    module.config.get_text_config().use_cache = False
    return module.eval()  # type: ignore[no-any-return]


def language_model_shape(
    model: str,
    *,
    freeze_vision: bool = True,
    trained: bool = True,
    lora: LoraSettings | None = None,
    trust_remote_code: bool = False,
) -> ModelShape:
    """Returns the shape of a language or vision-language model, as `VisionLanguageBackbone`
    trains it.

    Args:
        model: folder or hub id.
        freeze_vision: whether all but language model and head is frozen.
        trained: False for writers and judges.
        lora: updates of the language model, in place of its weights.
        trust_remote_code: whether code that comes with the model may run.
    """
    whole: Any = model_on_meta(model, trust_remote_code)
    decoder, head = whole.get_decoder(), whole.get_output_embeddings()
    config = whole.config.get_text_config()
    total, freeze_vision = _count(whole.parameters()), freeze_vision or lora is not None
    if freeze_vision:
        for module in outside_of_text(whole):
            module.requires_grad_(False)
    updates = _attach(decoder, lora) if lora else 0
    if lora:
        # `attach_lora` freezes the decoder; the head is outside of it.
        head.requires_grad_(False)

    towers = {"text": _tower(decoder, _text, trained)}
    deeper: tuple[int, ...] = ()
    if (visual := _visual(whole)) is not None:
        towers["vision"] = _tower(visual, _patches(visual), trained and not freeze_vision)
        deeper = getattr(whole.config.vision_config, "deepstack_visual_indexes", None) or ()

    # Updates are counted apart, since they are fp32 whatever the type of the weights is.
    learned = sum(p.numel() for p in whole.parameters() if p.requires_grad) - updates
    return ModelShape(
        total=total,
        trainable=learned if trained else 0,
        towers=towers,
        hidden=config.hidden_size,
        updates=updates,
        rank=lora.rank if lora else 0,
        vocabulary=head.weight.shape[0],
        cached=_cached_numbers(config),
        picture_states=1 + len(deeper),
    )


def joint_shape(arguments: Mapping[str, Any], lora: LoraSettings | None = None) -> ModelShape:
    """Returns the shape of a `JointEncoder`.

    Args:
        arguments: of its constructor; those left out have its defaults.
        lora: updates of the text encoder, in place of its weights.
    """
    from mmemb.backbones.tower import EfficientNetTower

    text: Any = model_on_meta(str(arguments["text_model"]), add_pooling_layer=False)
    hidden, encoder = text.config.hidden_size, _count(text.parameters())
    # The word embeddings stay as they came.
    text.get_input_embeddings().requires_grad_(False)

    # What is new beside the text encoder: projectors, kinds of pictures, the score of the mean.
    feature = int(arguments.get("feature_dim", EfficientNetTower.feature_dim))
    thumbnail = int(arguments.get("thumbnail_dim", EfficientNetTower.thumbnail_dim))
    projectors = sum(2 * width + (width + 1) * hidden for width in (feature, thumbnail) if width)
    new = projectors + (1 + int(arguments.get("max_frames", 16))) * hidden + hidden

    updates = _attach(text, lora) if lora else 0
    learned = sum(p.numel() for p in text.parameters() if p.requires_grad) - updates
    return ModelShape(
        total=encoder + new + (efficient_net_parameters() if arguments.get("tower") else 0),
        trainable=learned + new,
        towers={"text": _tower(text, _text, trained=True)},
        hidden=hidden,
        updates=updates,
        rank=lora.rank if lora else 0,
    )


def open_clip_config(name: str) -> dict[str, Any]:
    """Returns the configuration from which open_clip builds a model.

    Args:
        name: of the model, or the path of its JSON config.

    Raises:
        ValueError: open_clip has no model of that name.
    """
    import open_clip

    from mmemb.backbones.open_clip import read_spec

    if name.endswith(".json"):
        return read_spec(Path(name))["model_cfg"]  # type: ignore[no-any-return]
    config = open_clip.get_model_config(name)
    if config is None:
        raise ValueError(
            f"open_clip has no model {name!r}; see open_clip.list_models(), or give the path of "
            "a JSON config in backbone.init_args.model."
        )
    return config  # type: ignore[no-any-return]


def open_clip_shape(name: str) -> ModelShape:
    """Returns the shape of an `OpenClipBackbone`, by the name of its model or its JSON config."""
    import open_clip

    config = open_clip_config(name)
    settings = {k: v for k, v in config.items() if k not in ("custom_text", "hf_tokenizer_name")}
    custom = config.get("custom_text") or "hf_model_name" in config["text_cfg"]
    kind = open_clip.model.CustomTextCLIP if custom else open_clip.model.CLIP
    with torch.device("meta"):
        model: Any = kind(**settings).eval()

    words = model.text if custom else model.transformer

    # The temperature belongs to the loss.
    learned = [p for n, p in model.named_parameters() if n not in ("logit_scale", "logit_bias")]
    context, picture, size = clip_lengths(config)

    # Lengths count tokens, of which a text or a picture always has the same number.
    def texts(call: Call, padded: bool) -> tuple[Any, ...]:
        return None, fake(ceil(call.tokens / context), context, dtype=torch.long)

    def pictures(call: Call, padded: bool) -> tuple[Any, ...]:
        return (fake(ceil(call.tokens / picture), 3, size, size),)

    return ModelShape(
        total=_count(model.parameters()),
        trainable=_count(learned),
        towers={
            "text": _tower(model, texts, trained=True, part=words),
            "vision": _tower(model, pictures, trained=True, part=model.visual),
        },
        hidden=config["embed_dim"],
    )


def clip_lengths(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """Returns the tokens of a text, those of a picture, and the side of a picture in pixels, which
    are the same for all inputs of a model of open_clip."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    size, patch = vision.get("image_size", 224), vision.get("patch_size", 16)
    return int(text.get("context_length", 77)), (size // patch) ** 2 + 1, size


def efficient_net_parameters() -> int:
    """Returns the parameters of `EfficientNetTower`, which are all frozen."""
    import timm

    with torch.device("meta"):
        return _count(timm.create_model("tf_efficientnet_lite0", num_classes=0).parameters())


def _tower(
    module: nn.Module, inputs: Inputs, trained: bool, part: nn.Module | None = None
) -> Tower:
    """A tower whose blocks are those of a part of its module; None = of all of it."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    numbered = re.compile(r"(^|\.)(resblocks|blocks|layer)\.\d+$")
    blocks = [
        block
        for name, block in (part or module).named_modules()
        if isinstance(block, GradientCheckpointingLayer) or numbered.search(name)
    ]
    return Tower(module=module, inputs=inputs, blocks=tuple(blocks), trained=trained)


def _text(call: Call, padded: bool) -> tuple[Any, ...]:
    """Token ids and mask, of a decoder or a text encoder of transformers."""
    ids = fake(call.rows, call.length, dtype=torch.long)
    return ids, torch.ones_like(ids) if padded else None


def _patches(visual: Any) -> Inputs:
    """Patches and grids of pictures that are two merged patches high, of a tower of Qwen."""
    merge = visual.spatial_merge_size
    numbers = visual.patch_embed.proj.weight[0].numel()

    def inputs(call: Call, padded: bool) -> tuple[Any, ...]:
        # The shape of a picture does not matter for memory, the number of its patches does.
        wide = max(merge, round(call.length / merge**2) * merge)
        pixels = fake(call.rows * wide * merge, numbers)
        return pixels, torch.tensor([[1, merge, wide]] * call.rows)

    return inputs


def _cached_numbers(config: Any) -> int:
    """Numbers of the keys and values of a token; a linear attention has a state of fixed size."""
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    attending = sum("linear" not in kind for kind in kinds)
    return 2 * attending * getattr(config, "num_key_value_heads", heads) * width


def _attach(model: nn.Module, settings: LoraSettings) -> int:
    """Puts LoRA updates into a model, in place, and returns their number of parameters."""
    with torch.device("meta"):
        return _count(lora_parameters(attach_lora(model, settings)).values())


def _visual(model: Any) -> nn.Module | None:
    return next((m for n, m in model.named_modules() if n.split(".")[-1] == "visual"), None)


def _count(parameters: Iterable[nn.Parameter]) -> int:
    """Counts numbers; tied parameters are counted once."""
    return sum(p.numel() for p in {id(p): p for p in parameters}.values())
