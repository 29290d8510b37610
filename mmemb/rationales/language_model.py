"""A causal language model of transformers as a rationale worker: text in, text out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from mmemb.rationales.base import RationaleWorker, check_seeds, drawn_seeds
from mmemb.rationales.decoders import (
    SHARED_PREFIX_ATTENTION,
    SharedPrefixDecoder,
    WholePromptDecoder,
)
from mmemb.rationales.prompt_states import first_states
from mmemb.rationales.prompts import FewShotPrompt
from mmemb.rationales.sampling import Decoder, Draw, Sampling, decode
from mmemb.records import Rationale, Side, stable_hash

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@final
class LanguageModelWorker(RationaleWorker):
    """Writes rationales with a chat model, greedy and sampled draws in one batch (METHOD 4).

    The few-shot prompt is read once. The model loads at the first `write` and is no module of
    this object, so no checkpoint ever holds it.

    Args:
        model: local folder or hub id of a causal language model.
        prompt: path of the few-shot file (`FewShotPrompt`).
        name: recorded as the rationales' worker.
        max_new_tokens: longest draw; one that is cut off has no answer and is dropped later.
        temperature: of sampled draws.
        top_p: nucleus of sampled draws.
        top_k: sampled draws come from this many likeliest tokens.
        batch_size: most draws decoded together.
        device: torch device.
        dtype: `float32` (fastest on most CPUs), `bfloat16` or `float16`.
        probe_layer: block whose hidden state `probe` returns. Measured on the 30 blocks of
            SmolLM2: those from 12 to 21 tell best whether it knows the answer.
    """

    def __init__(
        self,
        model: str,
        prompt: str,
        name: str = "smollm2",
        max_new_tokens: int = 40,
        temperature: float = 0.8,
        top_p: float = 0.95,
        top_k: int = 50,
        batch_size: int = 128,
        device: str = "cpu",
        dtype: str = "float32",
        probe_layer: int = -1,
    ) -> None:
        if dtype not in _DTYPES:
            raise ValueError(f"dtype {dtype!r} is unknown; expected one of {sorted(_DTYPES)}.")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected at least 1.")
        self.name, self.prompt_path, self.model_id = name, str(prompt), str(model)
        self.prompt = FewShotPrompt.load(prompt)
        self.concepts = self.prompt.concepts
        self.sampling = Sampling(max_new_tokens, temperature, top_p, top_k)
        self.batch_size, self.device, self.dtype = batch_size, device, dtype
        self.probe_layer = probe_layer
        self._known: dict[str, Tensor] = {}  # states of the questions read last

    def settings(self) -> dict[str, Any]:
        sampling = self.sampling
        return {
            "class_path": "mmemb.rationales.LanguageModelWorker",
            "init_args": {
                "model": self.model_id,
                "prompt": self.prompt_path,
                "name": self.name,
                "max_new_tokens": sampling.max_new_tokens,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": sampling.top_k,
                "batch_size": self.batch_size,
                "device": self.device,
                "dtype": self.dtype,
                "probe_layer": self.probe_layer,
            },
        }

    def identity(self) -> str:
        """Covers the content of prompt and model, not where they lie."""
        parts = (self.name, self.prompt.identity, self.revision, self.sampling, self.dtype)
        parts += (self.probe_layer,)
        return f"{stable_hash(*parts, self.batch_size, bits=64):016x}"

    def write(self, sides: Sequence[Side], seeds_BK: Tensor) -> list[list[Rationale]]:
        check_seeds(sides, seeds_BK)
        rows = [
            (i, seed)
            for i, side in enumerate(sides)
            if self.can_read(side)
            for seed in drawn_seeds(seeds_BK[i])
        ]
        written: list[list[Rationale]] = [[] for _ in sides]
        self._known.clear()
        for first in range(0, len(rows), self.batch_size):
            chunk = rows[first : first + self.batch_size]
            for (i, seed), draw in zip(chunk, self._decode(sides, chunk), strict=True):
                written[i].append(self._rationale(draw, seed))
        return written

    def probe(self, sides: Sequence[Side]) -> Tensor:
        """See `RationaleWorker.probe`; free for sides that were written about a moment ago."""
        questions = [self.prompt.question(side) for side in sides]
        known = dict(self._known)
        unread = [question for question in dict.fromkeys(questions) if question not in known]
        for first in range(0, len(unread), self.batch_size):
            chunk = unread[first : first + self.batch_size]
            known |= self._read(chunk, lambda ids: self._decoder.start(ids))
        width = self._model.config.get_text_config().hidden_size
        return torch.stack([known[q] for q in questions]) if sides else torch.zeros(0, width)

    @cached_property
    def revision(self) -> str:
        """Hash of a local model's weights and configuration; a hub model's commit otherwise."""
        folder = Path(self.model_id)
        if not folder.is_dir():
            return str(getattr(self._model.config, "_commit_hash", None) or "unknown")
        files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])
        digest = hashlib.sha256()
        for path in [folder / "config.json", *files]:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()[:12]

    def _decode(self, sides: Sequence[Side], rows: Sequence[tuple[int, int]]) -> list[Draw]:
        questions = [self.prompt.question(sides[i]) for i, _ in rows]
        distinct = list(dict.fromkeys(questions))  # a question's draws share its reading
        draws: list[Draw] = []

        def write(prompts: list[list[int]]) -> None:
            seeds, places = [seed for _, seed in rows], [distinct.index(q) for q in questions]
            draws.extend(
                decode(self._decoder, prompts, places, seeds, self.sampling, self._is_complete)
            )

        self._known |= self._read(distinct, write)
        return draws

    @torch.inference_mode()
    def _read(
        self, questions: Sequence[str], use: Callable[[list[list[int]]], object]
    ) -> dict[str, Tensor]:
        """Hands the questions' tokens to `use`; the hidden state at the end of each."""
        prompts = [self._question_ids(question) for question in questions]
        num_layers = self._model.config.get_text_config().num_hidden_layers
        _ = self._decoder  # it reads the shared prefix when it is made, and that is no question
        with first_states(self._model, num_layers, self.probe_layer) as states:
            use(prompts)
        return dict(zip(questions, states[0], strict=True))

    def _rationale(self, draw: Draw, seed: int) -> Rationale:
        generated = self._tokenizer.decode(draw.tokens, skip_special_tokens=True)
        return Rationale(
            text=self.prompt.rationale_text(generated, draw.complete),
            worker=self.name,
            model=self.model_id if not Path(self.model_id).is_dir() else Path(self.model_id).name,
            revision=self.revision,
            prompt=self.prompt.identity,
            decoding=self.sampling.describe(seed),
            seed=seed,
            num_tokens=len(draw.tokens),
            log_probability=round(draw.log_probability, 4),
            depth=self.prompt.depth,
        )

    def _is_complete(self, tokens: list[int]) -> bool:
        if tokens[-1] in self._end_ids:
            return True
        return bool(self.prompt.closing) and self.prompt.finished(self._tokenizer.decode(tokens))

    def _question_ids(self, question: str) -> list[int]:
        own = self.prompt.render(self._tokenizer, question)[len(self._shared_text) :]
        return self._tokenizer.encode(own, add_special_tokens=False)

    @cached_property
    def _prefix_ids(self) -> list[int]:
        return self._tokenizer.encode(self._shared_text, add_special_tokens=False)

    @cached_property
    def _shared_text(self) -> str:
        return self.prompt.shared_text(self._tokenizer)

    @cached_property
    def _end_ids(self) -> frozenset[int]:
        ends = self._model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        return frozenset({*ends, self._tokenizer.eos_token_id} - {None})

    @cached_property
    def _tokenizer(self) -> Any:
        tokenizer = self._load(AutoTokenizer)
        if tokenizer.chat_template is None:
            raise ValueError(
                f"The tokenizer of {self.model_id} has no chat template. Use an instruction-tuned "
                "model, or set chat_template in its tokenizer_config.json."
            )
        return tokenizer

    @cached_property
    def _model(self) -> PreTrainedModel:
        with torch.random.fork_rng(devices=[]):  # making modules draws from the global generator
            model = self._load(AutoModelForCausalLM, dtype=_DTYPES[self.dtype])
        return model.eval().requires_grad_(False).to(self.device)

    @cached_property
    def _decoder(self) -> Decoder:
        """The fast decoder where it provably computes what the model computes, else the plain."""
        model, plain = self._model, WholePromptDecoder(self._model, self._prefix_ids)
        if not (model._supports_attention_backend and self._prefix_ids):
            return plain
        probes = [self._question_ids(question) for question in ("a", "a longer question")]
        with torch.inference_mode():
            expected = plain.start(probes).float()
            usual = model.config._attn_implementation
            model.set_attn_implementation(SHARED_PREFIX_ATTENTION)
            fast = SharedPrefixDecoder(model, self._prefix_ids, self.sampling.max_new_tokens)
            error = (fast.start(probes).float() - expected).abs().max() / expected.std()
        if error < (1e-3 if self.dtype == "float32" else 0.2):
            return fast
        model.set_attn_implementation(usual)
        return plain

    def _load(self, kind: Any, **kwargs: Any) -> Any:
        try:
            if self.model_id.count("/") > 1 and not Path(self.model_id).is_dir():
                raise OSError("no such folder")  # and no hub id: nobody is asked for it
            return kind.from_pretrained(self.model_id, **kwargs)
        except (OSError, ValueError) as error:
            raise FileNotFoundError(
                f"The language model {self.model_id} cannot be loaded: {error}. Give the folder "
                "of a transformers model (prepare makes ROOT/models/smollm2) or a hub id."
            ) from None
