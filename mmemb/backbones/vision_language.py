"""VisionLanguageBackbone: any vision-language model of transformers that has a chat template.

Shapes: B sides, L tokens, H width of the model (and D).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor, nn

from mmemb.backbones.base import Paths, TextLength, check_policy
from mmemb.backbones.generative import (
    DirectVectors,
    GenerativeBackbone,
    Thoughts,
    replies_nll,
)
from mmemb.backbones.vision_cache import VisionCache
from mmemb.llm.decoding.cached_rows import CachedRows, PaddingSide, collate, head
from mmemb.llm.decoding.drafts import Draft, write_behind
from mmemb.llm.decoding.sampling import Sampling
from mmemb.llm.decoding.tags import TAGS, TaggedForm, whole_text
from mmemb.llm.loading import DTYPES, load_model, outside_of_text
from mmemb.llm.lora import LoraSettings
from mmemb.llm.prompts.chat_prompt import Prompt, PromptBuilder
from mmemb.llm.prompts.special_tokens import special_tokens
from mmemb.llm.prompts.style import PromptStyle, at_least_one
from mmemb.records.inputs import Side
from mmemb.records.rationales import DIRECT, GREEDY, Rationale
from mmemb.storage.spec import arguments_of
from mmemb.storage.tensor_files import save_quietly
from mmemb.storage.trust import in_folder


@final
class VisionLanguageBackbone(GenerativeBackbone):
    """Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Qwen3.5 and every other `AutoModelForImageTextToText` whose
    processor has a chat template; a language model without vision reads text alone.

    `h_d` is the state of the prompt's last token, `h_r` that of the rationale's last one behind the
    same prompt, both after the final norm.

    Args:
        model: local folder or hub id.
        style: how sides are put to the model; for a pretrained embedder as it was trained.
        padding_side: of training and embedding; generation always pads at the left.
        max_rationale_tokens: the most that is read of a rationale.
        long_rationale: of a longer one the beginning is cut (`truncate`: its end stays), or it is
            refused (`error`).
        freeze_vision: True if the vision tower is not trained.
        cached_pictures: number of pictures whose outputs of a frozen tower are kept, the latest.
        attention: implementation that transformers should use, such as `sdpa` or
            `flash_attention_2`; None = its own choice.
        dtype: of the weights.
        slots: most prompts that are read together where rationales are written.
        trust_remote_code: whether code that comes with the model may run. Leave it off.
    """

    sources: ClassVar[Mapping[str, Sequence[str]]] = {"model": ()}
    _files_hold = ("model.",)

    def __init__(
        self,
        model: str,
        style: PromptStyle | dict[str, Any] | None = None,
        padding_side: PaddingSide = "left",
        max_rationale_tokens: int = 512,
        long_rationale: Literal["truncate", "error"] = "truncate",
        freeze_vision: bool = True,
        attention: str | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        slots: int = 32,
        trust_remote_code: bool = False,
        cached_pictures: int = 0,
    ) -> None:
        super().__init__()
        if cached_pictures < 0:
            raise ValueError(f"cached_pictures is {cached_pictures}; expected 0 or more.")
        if cached_pictures and not freeze_vision:
            raise ValueError("cached_pictures needs freeze_vision: a tower that learns says anew.")

        self._seen = VisionCache(cached_pictures) if cached_pictures else None

        check_policy(dtype, DTYPES, "dtype")
        self.padding_side = check_policy(padding_side, ("left", "right"), "padding_side")
        self.long_rationale = check_policy(long_rationale, ("truncate", "error"), "long_rationale")

        self.model_id = model
        self.style = PromptStyle.from_mapping(style)
        at_least_one(max_rationale_tokens=max_rationale_tokens, slots=slots)
        self.max_rationale_tokens, self.slots = max_rationale_tokens, slots

        self.freeze_vision, self.attention, self.dtype_name = freeze_vision, attention, dtype
        self.trust_remote_code = trust_remote_code

        self.model, processor = load_model(model, attention, DTYPES[dtype], trust_remote_code)
        self.prompts = PromptBuilder(processor, self.style)
        self.modalities = self.prompts.modalities
        self.embedding_dim = self.model.config.get_text_config().hidden_size

        if freeze_vision:
            for module in outside_of_text(self.model):
                module.requires_grad_(False)

    # what is embedded

    def _encode(self, sides: Sequence[Side], rationales: Sequence[Rationale | None]) -> Tensor:
        if self.style.rationale_in == "text":
            prompts = self.prompts.build_all(list(map(_extended, sides, rationales)))
        else:
            prompts, _ = self._with_replies(sides, rationales)
        state_BLH, end_B = self._states(prompts)
        return state_BLH[_rows(end_B), end_B].float() + self._join()

    def encode_paths(
        self,
        sides: Sequence[Side],
        rationales: Sequence[Rationale | None],
        detach: bool = False,
        writes: bool = True,
    ) -> Paths:
        """See `Backbone.encode_paths`; one forward pass for all of it."""
        if self.style.rationale_in == "text":
            if writes:
                raise ValueError(
                    "With rationale_in: text a rationale is no reply, so writing it cannot be "
                    "trained: set losses.next_token to 0, or rationale_in: reply."
                )
            return super().encode_paths(sides, rationales)

        if writes and detach:
            self._check_head()

        rationales = [
            rationale if rationale is not None and rationale.plain else None
            for rationale in rationales
        ]
        self._check_all(sides, rationales)

        if not sides:
            empty = self._empty()
            return Paths(empty, empty, empty.sum(1), empty.sum(1).detach())

        whole, replies = self._with_replies(sides, rationales)
        num_tokens_B = torch.tensor([len(ids) for ids in replies], device=self.device)

        # One sequence holds both vectors: h_d at the end of its prompt, h_r at its own.
        state_BLH, end_B = self._states(whole)
        state_BLH = state_BLH + self._join()
        direct_BD, reasoned_BD = (
            self._unit(state_BLH[_rows(end_B), place_B], sides)
            for place_B in (end_B - num_tokens_B, end_B)
        )

        nll_B = direct_BD.new_zeros(len(sides))
        if writes:  # a vocabulary is wide: its logits are half of a small model's memory
            read_BLH = state_BLH.detach() if detach else state_BLH
            nll_B = replies_nll(self.output_head, read_BLH, end_B, replies)
        return Paths(direct_BD, reasoned_BD, nll_B, num_tokens_B.float())

    def _with_replies(
        self, sides: Sequence[Side], rationales: Sequence[Rationale | None]
    ) -> tuple[list[Prompt], list[list[int]]]:
        """Returns the prompts with the rationales behind them, and the tokens of these."""
        replies = [[] if rationale is None else self._said(rationale) for rationale in rationales]
        prompts = zip(self.prompts.build_all(sides), replies, strict=True)
        return [prompt.followed_by(ids) for prompt, ids in prompts], replies

    @property
    def output_head(self) -> nn.Module:
        """The layer from hidden states to logits, of the language model."""
        return head(self.model)

    def _check_head(self) -> None:
        learns = any(p.requires_grad for p in self.output_head.parameters())
        if torch.is_grad_enabled() and not learns:
            raise ValueError(
                "With detach_next_token the head alone learns to write, but it is frozen, as under "
                "LoRA: nothing would be trained. Set detach_next_token: false, or "
                "losses.next_token: 0."
            )

    def _said(self, rationale: Rationale) -> list[int]:
        ids: list[int] = self.prompts.tokenizer.encode(
            self.prompts.plain(whole_text(rationale)), add_special_tokens=False
        )
        if len(ids) > self.max_rationale_tokens and self.long_rationale == "error":
            raise ValueError(
                f"A rationale has {len(ids)} tokens, more than max_rationale_tokens "
                f"{self.max_rationale_tokens} ({rationale.text[:60]!r}): raise it, or set "
                "long_rationale: truncate."
            )

        # The answer stands last, so a cut at the front spares it.
        return ids[-self.max_rationale_tokens :]

    def _states(self, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
        batch = collate(self.model, prompts, self.padding_side)
        inputs: dict[str, Any] = batch.inputs
        if self._seen is not None:
            digests = [digest for prompt in prompts for digest in prompt.pictures]
            inputs = self._seen.replace_pixels(self.model, inputs, digests)

        output = self.model.base_model(**inputs, use_cache=False)
        return output.last_hidden_state, batch.end_R

    # what is written

    @torch.inference_mode()
    def read_prompts(self, sides: Sequence[Side], sampling: Sampling) -> DirectVectors:
        if self.style.rationale_in == "text":
            raise ValueError(
                "With rationale_in: text nothing can be written in one pass: use a writer of its "
                "own, or rationale_in: reply."
            )
        for position, side in enumerate(sides):
            self.check_side(side, f"side {position}")

        if not sides:
            return DirectVectors((), self._empty())

        # Sorted by length, so that neighbours are alike and little is padded.
        prompts = self.prompts.build_all(sides)
        order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
        groups = [
            tuple(order[start : start + self.slots]) for start in range(0, len(order), self.slots)
        ]
        room = self._form(sampling).room
        read = tuple(
            (rows, CachedRows.of_sorted(self.model, [prompts[row] for row in rows], room))
            for rows in groups
        )

        # Back from the order of lengths to that of the sides.
        state_RH = torch.cat([cached.state_RH for _, cached in read])
        state_BH = state_RH[torch.tensor(order).argsort()]
        return DirectVectors(tuple(sides), self._unit(state_BH, sides), read)

    @torch.inference_mode()
    def think(
        self,
        direct: DirectVectors,
        depths: Sequence[str],
        sampling: Sampling,
        seeds: Sequence[int] | None = None,
        longest: Mapping[str, int] | None = None,
    ) -> Thoughts:
        form, model = self._form(sampling, longest), Path(self.model_id).name
        seeds = [GREEDY] * len(depths) if seeds is None else seeds
        drafts: dict[int, Draft] = {}

        for group, cached in direct.prompts:
            places = [place for place, row in enumerate(group) if depths[row] != DIRECT]
            begun = {group[p]: form.begin(depths[group[p]], seeds[group[p]]) for p in places}
            drafts |= begun

            # A fork: another decision may go on from the same prompts.
            if places:
                rows = cached.fork(torch.tensor(places))
                write_behind(rows, list(begun.values()), form, sampling)

        rationales = [
            form.rationale(drafts[row], "self", model) if row in drafts else None
            for row in range(len(depths))
        ]

        # As in `encode`, a rationale without words is none.
        reasoned_rows = [
            row
            for row, rationale in enumerate(rationales)
            if rationale is not None and rationale.plain
        ]
        vectors_BD = direct.vectors_BD.clone()
        if reasoned_rows:
            state_RH = torch.stack([drafts[row].state_H for row in reasoned_rows])
            vectors_BD[reasoned_rows] = self._unit(
                state_RH, [direct.sides[row] for row in reasoned_rows]
            )
        return Thoughts(vectors_BD, tuple(rationales))

    def _form(self, sampling: Sampling, longest: Mapping[str, int] | None = None) -> TaggedForm:
        return TaggedForm(self.prompts.tokenizer, self.end_ids, sampling, longest or {})

    @cached_property
    def end_ids(self) -> frozenset[int]:
        tokenizer, ends = self.prompts.tokenizer, self.model.generation_config.eos_token_id
        tags = {tokenizer.convert_tokens_to_ids(tag) for tag in TAGS}  # special in some models
        special = tokenizer.convert_tokens_to_ids([*special_tokens(tokenizer, self.prompts.marks)])
        ends = {*special, *(ends if isinstance(ends, list) else [ends])}

        # A tag that a model declares special must not end the rationale that contains it.
        return frozenset(ends - tags - {None})

    # what a backbone is

    def config(self) -> dict[str, Any]:
        """The constructor's arguments as JSON data."""
        pictures = self._seen.most if self._seen else 0
        init_args = {"model": self.model_id, "style": asdict(self.style), "dtype": self.dtype_name}
        return arguments_of(self, **init_args, cached_pictures=pictures)

    def describe(self, side: Side, rationale: Rationale | None = None) -> str:
        """The prompt as text, and the rationale behind it."""
        ending = "" if rationale is None else self.prompts.plain(whole_text(rationale))
        return self.prompts.text(side, ending)

    def text_length(self, side: Side) -> TextLength | None:
        """See `Backbone.text_length`; of the whole prompt, with its pictures. None if a longer one
        is refused and not cut."""
        if self.style.long_text == "error":
            return None
        return TextLength(self.prompts.num_tokens(side), self.style.max_length)

    @property
    def updates(self) -> nn.Module | None:
        """The language model with its low-rank updates, as peft sees it; None if it has none."""
        return self._tuned[0] if self._tuned else None

    @property
    def language_part(self) -> nn.Module:
        """The language model without its head; the vision tower takes no updates."""
        return self.model.get_decoder()

    def attach_lora(self, settings: LoraSettings, seed: int = 0) -> None:
        """See `Backbone.attach_lora`."""
        if not self.freeze_vision:
            raise ValueError("with LoRA only the updates learn: set freeze_vision: true.")
        self.model.requires_grad_(False)
        super().attach_lora(settings, seed)

    def _save_files(self, folder: Path) -> dict[str, Any]:
        model = self.model
        if self._tuned:  # copied together, so that the copied updates lie in the copied model
            model, tuned = copy.deepcopy((self.model, self._tuned[0]))
            tuned.merge_and_unload()

        save_quietly(folder / "model", model, self.prompts.processor)
        # A folder may come from anywhere: the person who loads it decides whether its code may run.
        return {"model": in_folder("model"), "trust_remote_code": False}


def _extended(side: Side, rationale: Rationale | None) -> Side:
    """A side whose text the rationale extends."""
    if rationale is None:
        return side
    return replace(side, text="\n".join(part for part in (side.text, rationale.plain) if part))


def _rows(end_B: Tensor) -> Tensor:
    return torch.arange(len(end_B), device=end_B.device)
