"""Loads a vision-language or language model of transformers, and names its revision."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmemb.llm.lora import adapter_identity
from mmemb.records.text import quote
from mmemb.storage.hub import HubError
from mmemb.storage.pretrained import load_pretrained
from mmemb.storage.tensor_files import load_whole, quiet_loading

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def reason_of(error: Exception) -> str:
    """Returns why a model cannot be loaded, with the message of transformers."""
    message = f"{type(error).__name__}: {quote(error)}"
    return f'a file is missing, or holds what transformers cannot use; it says "{message}"'


def revision_of(model: str, commit: str | None) -> str:
    """Returns the commit of a hub model, or a hash (12 hex digits) of all files of a local one.

    Weights, configuration, tokenizer and chat template count.
    """
    folder = Path(model)
    if not folder.is_dir():
        return commit or "unknown"

    kinds = ("*.safetensors", "*.bin", "*.json", "*.jinja", "*.txt", "*.model")
    digest = hashlib.sha256()

    for path in sorted(path for kind in kinds for path in folder.glob(kind)):
        # The name counts too: transformers chooses by it what a file is read as.
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]


def loaded_revision(model: str, load: Callable[[], Any], adapter: str | None) -> str:
    """Returns the revision of a model and of its adapter, which a rationale keeps as its origin.

    Args:
        model: local folder or hub id.
        load: returns the model of transformers; called for a hub id only.
        adapter: folder of a LoRA adapter, or None.
    """
    # A hub id may move to other weights; transformers records the commit that it loaded.
    commit = None if Path(model).is_dir() else getattr(load().config, "_commit_hash", None)
    base = revision_of(model, commit)
    return f"{base}+{adapter_identity(Path(adapter))}" if adapter else base


def load_model(
    model: str, attention: str | None, dtype: torch.dtype, trust_remote_code: bool
) -> tuple[Any, Any]:
    """Loads a model in evaluation mode, and its processor or (without vision) its tokenizer.

    Args:
        model: local folder or hub id.
        attention: implementation that transformers should use; None = its own choice, with
            `grouped_attention` for `sdpa`.
        dtype: of the weights.
        trust_remote_code: True if code that comes with the model may run.

    Raises:
        FileNotFoundError: the model does not exist, or is broken.
    """
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoProcessor,
    )

    from mmemb.llm.decoding.grouped_attention import group_heads

    code = {"trust_remote_code": trust_remote_code}
    try:
        with quiet_loading():
            config = load_pretrained(AutoConfig, model, **code)

            # The class depends on vision, so it is looked up before any weights are loaded.
            sees = type(config) in AutoModelForImageTextToText._model_mapping
            kind = AutoModelForImageTextToText if sees else AutoModelForCausalLM
            settings = code | ({"attn_implementation": attention} if attention else {})
            loaded = load_whole(kind, model, dtype=dtype, **settings)
            if attention is None:
                group_heads(loaded)
            return loaded.eval(), load_pretrained(AutoProcessor, model, **code)
    except HubError:
        raise  # its message needs no addition
    except Exception as error:  # broken files can make a reader raise anything
        raise FileNotFoundError(
            f"The vision-language model {model} cannot be loaded: {reason_of(error)}. Give the "
            "folder of a transformers model with its processor, or a hub id."
        ) from None


def outside_of_text(model: Any) -> list[nn.Module]:
    """Returns all modules but the language model and its head: vision tower, projector."""
    parts = (model.get_decoder(), model.get_output_embeddings())
    inside = {id(module) for part in parts for module in part.modules()}

    outside = [module for module in model.modules() if id(module) not in inside]

    # Parents of the language model are left out: freezing one would freeze the language model.
    return [m for m in outside if not any(id(child) in inside for child in m.modules())]
