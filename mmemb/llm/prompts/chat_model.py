"""A chat model with its few-shot prompt: its weights, and the tokens of questions and replies.

It holds no decoding. Generation and fitting share it, so both read the same prompt.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, final

import torch
from msgspec.structs import replace
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from mmemb.llm.decoding.text_model import share_prefix
from mmemb.llm.loading import DTYPES, loaded_revision, reason_of
from mmemb.llm.lora import merge_adapter
from mmemb.llm.prompts.few_shot import FewShotPrompt
from mmemb.llm.prompts.special_tokens import as_text
from mmemb.records.rationales import Rationale
from mmemb.storage.hub import HubError
from mmemb.storage.pretrained import load_pretrained
from mmemb.storage.tensor_files import load_whole, quiet_loading


@final
class ChatModel:
    """Loads its model and tokenizer when they are first asked for.

    Args:
        model_id: local folder or hub id of a causal language model.
        prompt: the few-shot prompt.
        adapter: folder of a LoRA adapter, merged into the weights; None = the model as it is.
        device: torch device.
        dtype: `float32`, `bfloat16` or `float16`.
    """

    def __init__(
        self, model_id: str, prompt: FewShotPrompt, adapter: str | None, device: str, dtype: str
    ) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"dtype {dtype!r} is unknown; expected one of {sorted(DTYPES)}.")
        self.model_id, self.prompt, self.adapter = model_id, prompt, adapter
        self.device, self.dtype = device, dtype

    def copy(self) -> ChatModel:
        """Returns a chat model of the same settings with weights of its own."""
        return ChatModel(self.model_id, self.prompt, self.adapter, self.device, self.dtype)

    @property
    def label(self) -> str:
        """The model's name for a reader: a local folder's without the path to it."""
        return Path(self.model_id).name if Path(self.model_id).is_dir() else self.model_id

    @cached_property
    def revision(self) -> str:
        """Hash of a local model's weights and configuration, a hub model's commit otherwise; with
        an adapter also the hash of its content, so that every rationale tells who wrote it."""
        return loaded_revision(self.model_id, lambda: self.model, self.adapter)

    @cached_property
    def model(self) -> PreTrainedModel:
        """The frozen model, in evaluation mode, its adapter merged; shares prefixes if possible."""
        with torch.random.fork_rng(devices=[]):  # making modules draws from the global generator
            model = self._load(AutoModelForCausalLM, dtype=DTYPES[self.dtype])
            if self.adapter:
                model = merge_adapter(model, Path(self.adapter))
        return model.eval().requires_grad_(False).to(self.device)

    @cached_property
    def shares_prefix(self) -> bool:
        """Tells whether the model provably computes the same with the prefix stored once."""
        # Of unequal lengths, so that the comparison covers padding.
        probes = [self.question_ids(question) for question in ("a", "a longer question")]
        tolerance = 1e-3 if self.dtype == "float32" else 0.2
        return share_prefix(self.model, self.prefix_ids, probes, tolerance)

    @cached_property
    def tokenizer(self) -> Any:
        tokenizer = self._load(AutoTokenizer)
        if tokenizer.chat_template is None:
            raise ValueError(
                f"The tokenizer of {self.model_id} has no chat template. Use an instruction-tuned "
                "model, or set chat_template in its tokenizer_config.json."
            )
        return tokenizer

    @cached_property
    def prefix_ids(self) -> list[int]:
        """Tokens that the prompts of all questions share."""
        return self.tokenizer.encode(self._shared_text, add_special_tokens=False)

    def question_ids(self, question: str) -> list[int]:
        """Tokens between the prefix and the first generated token."""
        question = as_text(question, self.tokenizer)

        turn = self.prompt.render(self.tokenizer, question)[len(self._shared_text) :]
        return self.tokenizer.encode(turn, add_special_tokens=False)

    def reply_ids(self, rationale: Rationale) -> list[int]:
        """Tokens that should have been generated behind `question_ids` for a rationale."""
        rationale = replace(rationale, text=as_text(rationale.text, self.tokenizer))
        text = self.prompt.generated(rationale)
        ids = self.tokenizer.encode(text, add_special_tokens=False)

        # Without a closing text only the end token stops the model, so it must learn to write that.
        return ids if self.prompt.closing else [*ids, self.tokenizer.eos_token_id]

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a reply."""
        ends = self.model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        return frozenset({*ends, self.tokenizer.eos_token_id} - {None})

    @cached_property
    def _shared_text(self) -> str:
        return self.prompt.shared_text(self.tokenizer)

    def _load(self, kind: Any, **kwargs: Any) -> Any:
        try:
            if kind is AutoModelForCausalLM:
                return load_whole(kind, self.model_id, **kwargs)
            with quiet_loading():
                return load_pretrained(kind, self.model_id, **kwargs)
        except HubError:
            raise  # its message needs no addition
        except Exception as error:  # broken files can make a reader raise anything
            raise FileNotFoundError(
                f"The language model {self.model_id} cannot be loaded: {reason_of(error)}. Give "
                "the folder of a transformers model (prepare makes ROOT/models/smollm2) or a hub "
                "id."
            ) from None
