"""Random vision-language models of real architectures, a few hundred thousand parameters large.

Their texts make no sense; they run every line that the large ones run, without a network.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmemb.storage.tensor_files import save_quietly

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
"""A token each, and not special: they are part of the text."""

TEMPLATE = (
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{%- if m.content is string %}{{ m.content }}{%- else %}{%- for part in m.content %}"
    "{%- if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{%- elif part.type == 'video' %}VIDEO{%- else %}{{ part.text }}{%- endif %}"
    "{%- endfor %}{%- endif %}<|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Puts media and text in the order given, as the templates of the large models do."""

_SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 2048, "initializer_range": 0.15,
}  # fmt: skip
_VISION = {"depth": 2, "num_heads": 2, "in_channels": 3, "spatial_merge_size": 2}


def write_tiny_vlm(folder: Path, architecture: str = "qwen3_vl", seed: int = 0) -> Path:
    """Writes model, tokenizer and processor to a folder that the Auto classes read.

    Args:
        folder: made if it does not exist.
        architecture: `qwen2_vl`, `qwen2_5_vl`, `qwen3_vl` or `qwen3_5`.
        seed: of the weights.

    Returns:
        The folder.
    """
    import torch

    if architecture not in ARCHITECTURES:
        expected = ", ".join(sorted(ARCHITECTURES))
        raise ValueError(f"architecture {architecture!r}: expected one of {expected}.")

    tokenizer = _tokenizer()
    # The caller's random numbers stay as they were.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ARCHITECTURES[architecture](len(tokenizer))
        for name, parameter in model.named_parameters():
            if "norm" in name and parameter.ndim == 1:  # ones would hide a norm that is left out
                torch.nn.init.uniform_(parameter, 0.5, 1.5)

    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    save_quietly(folder, model, _processor(architecture, tokenizer))
    return folder


def _tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens, behind the special ones."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate((*SPECIAL, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()

    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL[1:]), model_max_length=2048,
    )  # fmt: skip


def _processor(architecture: str, tokenizer: PreTrainedTokenizerFast) -> Any:
    from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor, Qwen3VLVideoProcessor
    from transformers.models.qwen2_5_vl import Qwen2_5_VLProcessor
    from transformers.models.qwen2_vl import Qwen2VLProcessor
    from transformers.models.qwen3_vl import Qwen3VLProcessor

    third = architecture in ("qwen3_vl", "qwen3_5")
    sizes = {"patch_size": 8, "merge_size": 2, "temporal_patch_size": 2}
    image = Qwen2VLImageProcessor(**sizes, size=_pixels(16 * 16, 64 * 64))
    video_kind = Qwen3VLVideoProcessor if third else Qwen2VLVideoProcessor
    video = video_kind(**sizes, size=_pixels(16 * 16, 16 * 64 * 64), do_sample_frames=False)

    old = {"qwen2_vl": Qwen2VLProcessor, "qwen2_5_vl": Qwen2_5_VLProcessor}
    kind = old.get(architecture, Qwen3VLProcessor)
    # Frames of the third generation get their vision marks from the processor, with a time each.
    clip = "<|video_pad|>" if third else "<|vision_start|><|video_pad|><|vision_end|>"
    return kind(image, tokenizer, video, chat_template=TEMPLATE.replace("VIDEO", clip))


def _pixels(least: int, most: int) -> dict[str, int]:
    return {"shortest_edge": least, "longest_edge": most}


def _ids() -> dict[str, int]:
    number = {token: n for n, token in enumerate(SPECIAL)}
    return {
        "image_token_id": number["<|image_pad|>"],
        "video_token_id": number["<|video_pad|>"],
        "vision_start_token_id": number["<|vision_start|>"],
        "vision_end_token_id": number["<|vision_end|>"],
    }


def _text(vocab_size: int, sections: tuple[int, int, int] = (1, 1, 2)) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(sections)}
    ends = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0}
    return _SIZES | ends | {"vocab_size": vocab_size, "rope_parameters": rope}


def _qwen2_vl(vocab_size: int) -> PreTrainedModel:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    vision = _VISION | {"embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2, "patch_size": 8}
    config = Qwen2VLConfig(text_config=_text(vocab_size), vision_config=vision, **_ids())
    return Qwen2VLForConditionalGeneration(config)


def _qwen2_5_vl(vocab_size: int) -> PreTrainedModel:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    vision = _VISION | {
        "hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 32, "patch_size": 8,
        "window_size": 32, "fullatt_block_indexes": [1],
    }  # fmt: skip
    config = Qwen2_5_VLConfig(text_config=_text(vocab_size), vision_config=vision, **_ids())
    return Qwen2_5_VLForConditionalGeneration(config)


def _third_vision() -> dict[str, Any]:
    sizes = {"hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 32}
    return _VISION | sizes | {"patch_size": 8, "num_position_embeddings": 64}


def _qwen3_vl(vocab_size: int) -> PreTrainedModel:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    vision = _third_vision() | {"deepstack_visual_indexes": [0, 1]}
    text = _text(vocab_size) | {"head_dim": 8}
    config = Qwen3VLConfig(text_config=text, vision_config=vision, **_ids())
    return Qwen3VLForConditionalGeneration(config)


def _qwen3_5(vocab_size: int) -> PreTrainedModel:
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

    text = _text(vocab_size, (2, 1, 1)) | {
        "head_dim": 32, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
        "linear_num_key_heads": 2, "linear_num_value_heads": 4,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    }  # fmt: skip
    text["rope_parameters"] |= {"partial_rotary_factor": 0.25}
    config = Qwen3_5Config(text_config=text, vision_config=_third_vision(), **_ids())
    return Qwen3_5ForConditionalGeneration(config)


ARCHITECTURES: dict[str, Callable[[int], PreTrainedModel]] = {
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "qwen3_5": _qwen3_5,
}
