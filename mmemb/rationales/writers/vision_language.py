"""A vision-language model of transformers as a rationale writer: it sees the pictures itself.

See docs/method.md section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

import torch
from torch import Tensor

from mmemb.llm.decoding.drafter import Drafter
from mmemb.llm.decoding.drafts import Draft
from mmemb.llm.decoding.sampling import Sampling
from mmemb.llm.decoding.tags import TaggedForm
from mmemb.llm.loading import loaded_revision
from mmemb.llm.lora import LoraSettings, merge_adapter
from mmemb.llm.prompts.chat_prompt import Prompt
from mmemb.llm.prompts.style import PromptStyle
from mmemb.rationales.supervised import ReplyTuner, check_no_adapter
from mmemb.rationales.writers.base import DrawingWriter
from mmemb.records.hashing import stable_hash
from mmemb.records.inputs import Side
from mmemb.records.loss_term import LossTerm
from mmemb.records.rationales import FULL, SHORT, Rationale
from mmemb.storage.spec import arguments_of
from mmemb.storage.trained_facts import trained_facts

if TYPE_CHECKING:
    from mmemb.backbones.vision_language import VisionLanguageBackbone

ASK = (
    "Think about what is asked for before you name it. Write <think>your thoughts</think>"
    "<answer>a short description of what is asked for</answer>."
)
PLAIN_STYLE = PromptStyle(system=ASK)


@final
class VisionLanguageWriter(DrawingWriter):
    """Writes about text, pictures and clips; all draws about a side share its prompt.

    Args:
        model: folder or hub id; `backbone/model` of a trained run is such a folder.
        style: wording of the prompts; the system turn asks for the form of a rationale.
        name: recorded as the rationales' writer.
        depth: `full`, or `short` for rationales that begin with their answer.
        max_new_tokens: longest draw; one that is cut off is closed without an answer, and dropped.
        temperature: temperature of sampled draws.
        top_p: nucleus of sampled draws.
        top_k: sampled draws come from this many likeliest tokens.
        batch_size: most draws under way together.
        device: torch device; None = a GPU if there is one.
        dtype: type of the weights.
        attention: implementation that transformers should use; None = its own choice.
        prompt_state_layer: block whose state at the end of the prompt `prompt_states` returns.
        adapter: folder `generator` of a run of `RationaleGenerator fit`, merged into the weights.
        trust_remote_code: whether code that comes with the model may run. Leave it off.
    """

    model_arguments: ClassVar[tuple[str, ...]] = ("model", "adapter")

    def __init__(
        self,
        model: str,
        style: PromptStyle | dict[str, Any] = PLAIN_STYLE,
        name: str = "vision-language",
        depth: Literal["full", "short"] = "full",
        max_new_tokens: int = 256,
        temperature: float = 0.8,
        top_p: float = 0.95,
        top_k: int = 50,
        batch_size: int = 32,
        device: str | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        attention: str | None = None,
        prompt_state_layer: int = -1,
        adapter: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected at least 1.")
        if depth not in (FULL, SHORT):
            raise ValueError(f"depth {depth!r}: expected {FULL!r} or {SHORT!r}.")

        self.model_id, self.name, self.depth = str(model), name, depth
        self.style = PromptStyle.from_mapping(style)
        self.sampling = Sampling(max_new_tokens, temperature, top_p, top_k)

        self.batch_size, self.device, self.dtype = batch_size, device, dtype
        self.attention, self.prompt_state_layer = attention, prompt_state_layer
        self.adapter = None if adapter is None else str(adapter)
        self.trust_remote_code = trust_remote_code

    def config(self) -> dict[str, Any]:
        init_args = {"model": self.model_id, "style": asdict(self.style)}
        arguments = arguments_of(self, **init_args, **asdict(self.sampling))

        # A saved folder never asks for code: its user alone may.
        del arguments["trust_remote_code"]
        return arguments

    def identity(self) -> str:
        """Covers the content of model and adapter, not where they lie."""
        return f"{stable_hash(self.draw_identity(), self.prompt_state_layer, bits=64):016x}"

    def draw_identity(self) -> str:
        style = sorted(asdict(self.style).items())
        parts = (self.name, style, self.depth, self.revision, self.sampling, self.dtype)
        return f"{stable_hash(*parts, bits=64):016x}"

    def prompt_state_identity(self) -> str:
        style = sorted(asdict(self.style).items())
        parts = (style, self.revision, self.dtype, self.prompt_state_layer)
        return f"{stable_hash('probe', *parts, bits=64):016x}"

    @property
    def reads(self) -> frozenset[str]:  # type: ignore[override]
        """Modalities that the model's processor can read."""
        return self._backbone.modalities

    @cached_property
    def revision(self) -> str:
        """Revision of the weights, adapter included."""
        return loaded_revision(self.model_id, lambda: self._backbone.model, self.adapter)

    @cached_property
    def trained_facts(self) -> frozenset[str]:
        """Facts of the adapter's run and of the model; a model of the hub was fitted on none."""
        return trained_facts(self.model_id, self.adapter)

    def _draw(self, seeded_sides: Sequence[tuple[Side, int]]) -> list[Rationale]:
        form, drafter = self._drafter
        drafts = [form.begin(self.depth, seed) for _, seed in seeded_sides]

        # Equal sides share the reading of their prompt.
        pools: dict[str, list[Draft]] = {}
        for (side, _), draft in zip(seeded_sides, drafts, strict=True):
            pools.setdefault(side.digest, []).append(draft)
        drafter.write(self._prompts([side for side, _ in seeded_sides]), pools)

        # The style stands for the prompt in the record of a rationale.
        prompt = f"{stable_hash(sorted(asdict(self.style).items()), bits=48):012x}"
        origin = (self.name, Path(self.model_id).name, self.revision, prompt)
        return [form.rationale(draft, *origin) for draft in drafts]

    def prompt_states(self, sides: Sequence[Side]) -> Tensor:
        """See `RationaleWriter.prompt_states`; free for sides that were just written about."""
        states = self._drafter[1].prompt_states(self._prompts(sides))
        rows = [states[side.digest] for side in sides]
        return torch.stack(rows) if rows else torch.zeros(0, self._backbone.embedding_dim)

    def _prompts(self, sides: Sequence[Side]) -> dict[str, Prompt]:
        """Maps the digest of each side to its prompt."""
        distinct = {side.digest: side for side in sides}
        return dict(
            zip(distinct, self._backbone.prompts.build_all(list(distinct.values())), strict=True)
        )

    def tuner(self, lora: LoraSettings, seed: int) -> ReplyTuner:
        """See `RationaleWriter.tuner`."""
        check_no_adapter(self.adapter)
        return VisionLanguageTuner(self._load(), lora, seed)

    @cached_property
    def _drafter(self) -> tuple[TaggedForm, Drafter]:
        """The form of the drafts, and the drafter that writes them."""
        backbone, sampling = self._backbone, self.sampling
        form = TaggedForm(backbone.prompts.tokenizer, backbone.end_ids, sampling)
        slots, layer = self.batch_size, self.prompt_state_layer
        return form, Drafter(backbone.model, form, sampling, form.room, slots, layer)

    @cached_property
    def _backbone(self) -> VisionLanguageBackbone:
        backbone = self._load()
        if self.adapter:
            merge_adapter(backbone.model.get_decoder(), Path(self.adapter))

        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        return backbone.eval().requires_grad_(False).to(device)

    def _load(self) -> VisionLanguageBackbone:
        from mmemb.backbones.vision_language import VisionLanguageBackbone

        return VisionLanguageBackbone(
            self.model_id,
            self.style,
            max_rationale_tokens=4 * self.sampling.max_new_tokens,
            attention=self.attention,
            dtype=self.dtype,
            trust_remote_code=self.trust_remote_code,
        )


@final
class VisionLanguageTuner(ReplyTuner):
    """LoRA updates of the language model, fitted on rationales behind the writer's own prompt.

    Args:
        backbone: the model, which is changed in place.
        lora: rank, scale, layers.
        seed: seed of the updates' start.
    """

    def __init__(self, backbone: VisionLanguageBackbone, lora: LoraSettings, seed: int) -> None:
        self._backbone, decoder = backbone, backbone.model.get_decoder()
        super().__init__(backbone, decoder, Path(backbone.model_id).name, lora, seed)

    def loss(self, sides: Sequence[Side], rationales: Sequence[Rationale]) -> LossTerm:
        """See `ReplyTuner.loss`."""
        paths = self._backbone.encode_paths(sides, list(rationales))
        return LossTerm(paths.nll_B.sum(), paths.num_tokens_B.sum())
