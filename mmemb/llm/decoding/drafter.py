"""Drafter: a model that writes drafts behind prompts, and keeps its hidden states at their ends.

Shapes: U rows, Q tokens, H width of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn

from mmemb.llm.decoding.cached_rows import CachedRows, parts_of_sorted
from mmemb.llm.decoding.drafts import Draft, DraftForm, write
from mmemb.llm.decoding.sampling import Sampling
from mmemb.llm.prompts.chat_prompt import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MOST_STATES = 4096
"""Hidden states that are kept from one call to the next."""


@final
@dataclass(eq=False)
class Drafter:
    """Writes the drafts of many prompts; `prompt_states` need not read these prompts again.

    Args:
        model: a model of transformers with a language-model head, or a `TextModel`.
        form: of the drafts.
        sampling: how tokens are drawn.
        room: the most tokens of a draft.
        slots: most drafts under way together.
        prompt_state_layer: block whose state at the end of a prompt is kept.
    """

    model: Any
    form: DraftForm
    sampling: Sampling
    room: int
    slots: int
    prompt_state_layer: int
    _states: dict[str, Tensor] = field(default_factory=dict, init=False)

    def write(self, prompts: Mapping[str, Prompt], drafts: Mapping[str, Sequence[Draft]]) -> None:
        """Writes drafts to their ends.

        Args:
            prompts: by names of their own.
            drafts: those behind each prompt, by its name.
        """
        self._forget()

        # Parts that always fit into what a refill frees; a prompt is read once for each part.
        size = max(1, self.slots // 5)
        parts = [
            (name, drafts[name][start : start + size])
            for name in prompts
            for start in range(0, len(drafts[name]), size)
        ]

        def read(numbers: Sequence[int]) -> tuple[CachedRows, list[Sequence[Draft]]]:
            names = [parts[number][0] for number in numbers]
            with self._noting(names):
                some = [prompts[name] for name in names]
                rows = CachedRows.of_sorted(self.model, some, self.room)
            return rows, [parts[number][1] for number in numbers]

        lengths, sizes = [len(prompts[name]) for name, _ in parts], [len(part) for _, part in parts]
        write(lengths, sizes, read, self.form, self.sampling, self.slots)

    @torch.inference_mode()
    def prompt_states(self, prompts: Mapping[str, Prompt]) -> dict[str, Tensor]:
        """States (H,) at the ends of prompts; free for those that were read a moment ago.

        Args:
            prompts: by the names under which `write` got them.

        Raises:
            ValueError: the blocks of the model cannot be told from its other modules.
        """
        states = dict(self._states)
        self._forget()

        # Sorted by length, so that neighbours are alike and little is padded.
        unread = [name for name in prompts if name not in states]
        unread.sort(key=lambda name: -len(prompts[name]))
        for part in parts_of_sorted([prompts[name] for name in unread]):
            names, unread = unread[: len(part)], unread[len(part) :]
            with self._noting(names):
                CachedRows(self.model, part)

        states |= self._states
        if not states.keys() >= prompts.keys():
            raise ValueError(
                f"The model {self.model.name_or_path} keeps its blocks in no ModuleList, so the "
                "end of its prompt cannot be read. Choose a gate state without `prompt_state`."
            )
        return {name: states[name] for name in prompts}

    @contextmanager
    def _noting(self, names: Sequence[str]) -> Iterator[None]:
        """Keeps states while prompts of these names are read, in this order."""
        with end_states(self.model.get_decoder(), self.prompt_state_layer) as states:
            yield
        if states:
            self._states |= zip(names, torch.cat(states), strict=True)

    def _forget(self) -> None:
        """Drops states at the start of a call: within one, all are needed at its end."""
        if len(self._states) > MOST_STATES:
            self._states = {}


@contextmanager
def end_states(model: PreTrainedModel, layer: int | None) -> Iterator[list[Tensor]]:
    """Keeps the last token's state behind a block, (U, H), in the forwards inside the context.

    Rows must be padded on the left. A state of a middle block tells best what a model can answer:
    the last blocks have turned to the next word.

    Args:
        model: of transformers, with its blocks in one ModuleList.
        layer: number of the block; negative ones count from the end; None keeps nothing.

    Yields:
        A list that will hold the states of each forward. It stays empty if the blocks cannot be
        told from other modules, since a model that only writes must not fail for it.

    Raises:
        ValueError: the model has no such block.
    """
    states: list[Tensor] = []

    def keep(module: nn.Module, arguments: Any, output: Any) -> None:
        # The last place of every row is real, since rows are padded on the left.
        state_UQH = output[0] if isinstance(output, tuple) else output
        states.append(state_UQH[:, -1].float().cpu())

    num_layers = model.config.get_text_config().num_hidden_layers
    if layer is None or (blocks := _blocks(model, num_layers)) is None:
        yield states
        return

    if not -num_layers <= layer < num_layers:
        raise ValueError(
            f"prompt_state_layer is {layer}, but the model has {num_layers} blocks: "
            f"choose one from 0 to {num_layers - 1}."
        )

    # The hook goes in any case: a model must not keep states of what is read later.
    handle = blocks[layer].register_forward_hook(keep)
    try:
        yield states
    finally:
        handle.remove()


def _blocks(model: nn.Module, num_layers: int) -> nn.ModuleList | None:
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_layers:
            return module
    return None
