"""How the texts of a CLIP are read by other libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmemb.backbones import OpenClipBackbone

READ_AS_TEXT = "A text that spells a special token is read as text."

TOKENIZING = (
    "The tokenizer of transformers repairs no curly quotes, ligatures or HTML entities, as "
    "open_clip and this project do: such characters change a vector."
)

_START, _END = "<|startoftext|>", "<|endoftext|>"
"""CLIP's special tokens, as transformers spells them."""


def check_tokenizer(backbone: OpenClipBackbone, source: Path) -> None:
    """Refuses a tokenizer that no other library has.

    Raises:
        ValueError: the backbone reads bytes.
    """
    if backbone.tokenizer_name == "bytes":
        raise ValueError(
            f"{source} reads texts as bytes (`tokenizer: bytes`), as no tokenizer of open_clip or "
            "transformers does, so it is not exported: train a model with a tokenizer of its own, "
            "such as that of backbone/clip_vit_b32."
        )


def keep_special_as_text(tokenizer: Any) -> None:
    """Makes a tokenizer of transformers read special tokens in a text as text, saved or not."""
    tokenizer.split_special_tokens = tokenizer.init_kwargs["split_special_tokens"] = True


def transformers_tokenizer(backbone: OpenClipBackbone, source: Path) -> tuple[Any, int]:
    """Returns the tokenizer for transformers, and the token at which the model reads out.

    Raises:
        ValueError: texts are cleaned in a way that transformers does not have.
    """
    from transformers import CLIPTokenizer

    length = backbone.tokenizer.context_length
    if (inner := getattr(backbone.tokenizer, "tokenizer", None)) is not None:
        inner.model_max_length = inner.init_kwargs["model_max_length"] = length
        keep_special_as_text(inner)
        return inner, max(inner.get_vocab().values())

    settings = backbone.spec["model_cfg"]["text_cfg"].get("tokenizer_kwargs") or {}
    if (clean := settings.get("clean", "lower")) != "lower":
        raise ValueError(
            f"{source} cleans texts by `{clean}`, which the tokenizer of transformers' CLIP does "
            "not do, so it is not exported so: try `--to open_clip`."
        )

    simple = backbone.tokenizer.simple
    names = {simple.sot_token_id: _START, simple.eot_token_id: _END}
    vocab = {names.get(number, token): number for token, number in simple.encoder.items()}
    merges = sorted(simple.bpe_ranks, key=simple.bpe_ranks.__getitem__)
    tokenizer = CLIPTokenizer(
        vocab=vocab, merges=merges, model_max_length=length, split_special_tokens=True
    )
    return tokenizer, simple.eot_token_id


def fusion(backbone: OpenClipBackbone) -> list[str]:
    """Returns sentences about what the project does with vectors, and other libraries do not."""
    text, visual = backbone.text_weight, backbone.visual_weight
    instruction = "An instruction stands in front of its text, with a space between."
    return [
        *([instruction] if backbone.read_instruction else []),
        f"A picture with a text has the vector {text:g} x that of the text + {visual:g} x that of "
        "the picture, of unit vectors, made of length 1; the library does not add them.",
    ]
