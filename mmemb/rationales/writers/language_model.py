"""A causal language model of transformers as a rationale writer: text in, text out.

See docs/method.md section 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from mmemb.backbones.generative import replies_nll
from mmemb.llm.decoding.drafter import Drafter
from mmemb.llm.decoding.drafts import Draft, PlainForm
from mmemb.llm.decoding.padding import left_pad
from mmemb.llm.decoding.sampling import Sampling
from mmemb.llm.decoding.text_model import TextModel, read_behind, read_prefix
from mmemb.llm.lora import LoraSettings
from mmemb.llm.prompts.chat_model import ChatModel
from mmemb.llm.prompts.chat_prompt import Prompt
from mmemb.llm.prompts.few_shot import FewShotPrompt
from mmemb.rationales.supervised import ReplyTuner, check_no_adapter
from mmemb.rationales.writers.base import DrawingWriter
from mmemb.records.hashing import stable_hash
from mmemb.records.inputs import Side
from mmemb.records.loss_term import LossTerm
from mmemb.records.rationales import Rationale
from mmemb.storage.spec import arguments_of
from mmemb.storage.trained_facts import trained_facts


@final
class LanguageModelWriter(DrawingWriter):
    """Writes rationales with a chat model, greedy and sampled draws in one batch.

    The few-shot prompt is read once. The model loads at the first `write` and is no module of
    this object, so no checkpoint ever holds it.

    Args:
        model: local folder or hub id of a causal language model.
        prompt: path of the few-shot file (`FewShotPrompt`).
        name: name that is recorded as the rationales' writer.
        max_new_tokens: longest draw; one that is cut off has no answer and is dropped later.
        temperature: temperature of sampled draws.
        top_p: nucleus of sampled draws.
        top_k: sampled draws come from this many likeliest tokens.
        batch_size: most draws decoded together; finished ones make room for waiting ones.
        device: torch device.
        dtype: `float32` (fastest on most CPUs), `bfloat16` or `float16`.
        prompt_state_layer: block whose hidden state `prompt_states` returns. Of the 30
            blocks of SmolLM2, those from 12 to 21 tell best whether it has the answer (measured).
        adapter: folder `generator` of a run of `RationaleGenerator fit`, merged into the weights.
            Beside it, in the run, lies the list of facts that it was fitted on.
    """

    file_arguments: ClassVar[tuple[str, ...]] = ("prompt",)
    model_arguments: ClassVar[tuple[str, ...]] = ("model", "adapter")

    def __init__(
        self,
        model: str,
        prompt: str,
        name: str = "smollm2",
        max_new_tokens: int = 40,
        temperature: float = 0.8,
        top_p: float = 0.95,
        top_k: int = 50,
        batch_size: int = 96,
        device: str = "cpu",
        dtype: str = "float32",
        prompt_state_layer: int = -1,
        adapter: str | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected at least 1.")

        self.name, self.prompt_path, self.model_id = name, str(prompt), str(model)
        self.prompt = FewShotPrompt.load(prompt)
        self.concepts = self.prompt.concepts
        self.sampling = Sampling(max_new_tokens, temperature, top_p, top_k)

        self.batch_size, self.device, self.dtype = batch_size, device, dtype
        self.prompt_state_layer = prompt_state_layer
        self.adapter = None if adapter is None else str(adapter)

        self._chat = ChatModel(self.model_id, self.prompt, self.adapter, device, dtype)

    def config(self) -> dict[str, Any]:
        init_args = {"model": self.model_id, "prompt": self.prompt_path}
        return arguments_of(self, **init_args, **asdict(self.sampling))

    def identity(self) -> str:
        """Covers the content of prompt, model and adapter, not where they lie."""
        parts = (self.name, self.prompt.identity, self.revision, self.sampling, self.dtype)
        parts += (self.prompt_state_layer,)
        return f"{stable_hash(*parts, self.batch_size, bits=64):016x}"

    def draw_identity(self) -> str:
        """Covers what `identity` does, except `batch_size` and the prompt state's layer."""
        parts = (self.name, self.prompt.identity, self.revision, self.sampling, self.dtype)
        return f"{stable_hash(*parts, bits=64):016x}"

    def prompt_state_identity(self) -> str:
        """See `RationaleWriter.prompt_state_identity`; how draws are sampled has no part in it."""
        parts = (self.prompt.identity, self.revision, self.dtype, self.prompt_state_layer)
        return f"{stable_hash('probe', *parts, bits=64):016x}"

    @property
    def revision(self) -> str:
        """Revision of the weights, adapter included."""
        return self._chat.revision

    @cached_property
    def trained_facts(self) -> frozenset[str]:
        """Facts of the adapter's run and of the model; a model of the hub was fitted on none."""
        return trained_facts(self.model_id, self.adapter)

    def tuner(self, lora: LoraSettings, seed: int) -> ReplyTuner:
        """See `RationaleWriter.tuner`."""
        return ChatTuner(self._chat.copy(), lora, seed)

    def _draw(self, seeded_sides: Sequence[tuple[Side, int]]) -> list[Rationale]:
        drafts = [Draft.begin(seed, self.sampling.max_new_tokens) for _, seed in seeded_sides]

        # Sides that put the same question share the reading of it.
        pools: dict[str, list[Draft]] = {}
        for (side, _), draft in zip(seeded_sides, drafts, strict=True):
            pools.setdefault(self.prompt.question(side), []).append(draft)
        self._drafter.write(self._prompts(pools), pools)
        return [self._rationale(draft) for draft in drafts]

    def prompt_states(self, sides: Sequence[Side]) -> Tensor:
        """See `RationaleWriter.prompt_states`; free for sides that were just written about."""
        questions = [self.prompt.question(side) for side in sides]
        states = self._drafter.prompt_states(self._prompts(questions))
        width = self._chat.model.config.get_text_config().hidden_size
        return torch.stack([states[q] for q in questions]) if sides else torch.zeros(0, width)

    def _prompts(self, questions: Iterable[str]) -> dict[str, Prompt]:
        """Maps each question to the tokens that the model reads, without a shared prefix."""
        chat = self._chat
        before = () if chat.shares_prefix else chat.prefix_ids
        return {q: Prompt((*before, *chat.question_ids(q))) for q in dict.fromkeys(questions)}

    def _rationale(self, draft: Draft) -> Rationale:
        generated = self._chat.tokenizer.decode(draft.tokens, skip_special_tokens=True)
        return Rationale(
            text=self.prompt.rationale_text(generated, draft.complete),
            writer=self.name,
            model=self._chat.label,
            revision=self.revision,
            prompt=self.prompt.identity,
            decoding=self.sampling.describe(draft.seed),
            seed=draft.seed,
            num_tokens=len(draft.tokens),
            log_probability=round(draft.log_probability, 4),
            depth=self.prompt.depth,
        )

    def _is_complete(self, tokens: list[int]) -> bool:
        if tokens[-1] in self._chat.end_ids:
            return True
        # The closing text may end within a token, so it is sought in the decoded text.
        return bool(self.prompt.closing) and self.prompt.finished(
            self._chat.tokenizer.decode(tokens)
        )

    @cached_property
    def _drafter(self) -> Drafter:
        """Drafter that stores the prefix once where the model provably computes the same."""
        chat, sampling = self._chat, self.sampling
        model = TextModel(chat.model, chat.prefix_ids if chat.shares_prefix else ())
        form = PlainForm(self._is_complete)
        slots, layer = self.batch_size, self.prompt_state_layer
        return Drafter(model, form, sampling, sampling.max_new_tokens, slots, layer)


@final
class ChatTuner(ReplyTuner):
    """A language model whose LoRA updates learn what it should have written.

    It reads the prompt of inference. The few-shot prefix is read once a step, with gradient, and
    shared by the rows: exact, since the updates change its keys and values at every step, and 350
    tokens a step instead of 350 a row. The updates are no module of this object; the
    trainer takes `parameters`.

    Args:
        chat: the model, which is changed in place; without an adapter.
        lora: rank, scale, layers.
        seed: seed of the updates' start.
    """

    def __init__(self, chat: ChatModel, lora: LoraSettings, seed: int = 0) -> None:
        check_no_adapter(chat.adapter)
        self._chat, self._shared = chat, chat.shares_prefix  # asked before there are updates
        super().__init__(chat.model, chat.model, chat.label, lora, seed)

    def loss(self, sides: Sequence[Side], rationales: Sequence[Rationale]) -> LossTerm:
        """See `ReplyTuner.loss`; the rationales are of the prompt's depth."""
        chat = self._chat
        prompts = [chat.question_ids(chat.prompt.question(side)) for side in sides]
        replies = [chat.reply_ids(rationale) for rationale in rationales]
        if not self._shared:
            prompts = [[*chat.prefix_ids, *prompt] for prompt in prompts]

        # Padded on the left, so that all replies end in the last column.
        rows = [[*prompt, *reply] for prompt, reply in zip(prompts, replies, strict=True)]
        ids_BL, mask_BL = left_pad(rows, chat.model.device)
        prefix = read_prefix(chat.model, chat.prefix_ids) if self._shared else None
        longest = max(map(len, replies))
        output = read_behind(chat.model, prefix, ids_BL, mask_BL, longest + 1, use_cache=False)

        # Logits take the place of states, so there is no head to run.
        end_B = torch.full((len(rows),), longest)
        nll_B = replies_nll(nn.Identity(), output.logits, end_B, replies)
        return LossTerm(nll_B.sum(), mask_BL.new_tensor(sum(map(len, replies))))
