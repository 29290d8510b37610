"""Drafter: a model that writes drafts behind prompts, and keeps its hidden states at their ends.

Shapes: H width of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor

from mmemb.llm.decoding.cached_rows import CachedRows, parts_of_sorted
from mmemb.llm.decoding.drafts import Draft, DraftForm, write
from mmemb.llm.decoding.hidden_states import end_states
from mmemb.llm.decoding.sampling import Sampling
from mmemb.llm.prompts.chat_prompt import Prompt

MOST_STATES = 4096
"""Hidden states that are kept from one call to the next."""


@final
class Drafter:
    """Writes the drafts of many prompts; what it reads for them, `probe` need not read again.

    Args:
        model: a model of transformers with a language-model head, or a `TextModel`.
        form: of the drafts.
        sampling: how tokens are drawn.
        room: the most tokens of a draft.
        slots: most drafts under way together.
        probe_layer: block whose state at the end of a prompt is kept.
    """

    def __init__(
        self,
        model: Any,
        form: DraftForm,
        sampling: Sampling,
        room: int,
        slots: int,
        probe_layer: int,
    ) -> None:
        self.model, self._form, self._sampling = model, form, sampling
        self._room, self._slots, self._probe_layer = room, slots, probe_layer
        self._states: dict[str, Tensor] = {}

    def write(self, prompts: Mapping[str, Prompt], drafts: Mapping[str, Sequence[Draft]]) -> None:
        """Writes drafts to their ends.

        Args:
            prompts: by names of their own.
            drafts: those behind each prompt, by its name.
        """
        self._forget()

        # Parts that always fit into what a refill frees; a prompt is read once for each part.
        size = max(1, self._slots // 5)
        parts = [
            (name, drafts[name][start : start + size])
            for name in prompts
            for start in range(0, len(drafts[name]), size)
        ]

        def read(numbers: Sequence[int]) -> tuple[CachedRows, list[Sequence[Draft]]]:
            names = [parts[number][0] for number in numbers]
            with self._noting(names):
                some = [prompts[name] for name in names]
                rows = CachedRows.of_sorted(self.model, some, self._room)
            return rows, [parts[number][1] for number in numbers]

        lengths, sizes = [len(prompts[name]) for name, _ in parts], [len(part) for _, part in parts]
        write(lengths, sizes, read, self._form, self._sampling, self._slots)

    @torch.inference_mode()
    def probe(self, prompts: Mapping[str, Prompt]) -> dict[str, Tensor]:
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
                "end of its prompt cannot be probed. Choose a gate state without `probe`."
            )
        return {name: states[name] for name in prompts}

    @contextmanager
    def _noting(self, names: Sequence[str]) -> Iterator[None]:
        """Keeps states while prompts of these names are read, in this order."""
        with end_states(self.model.get_decoder(), self._probe_layer) as states:
            yield
        if states:
            self._states |= zip(names, torch.cat(states), strict=True)

    def _forget(self) -> None:
        """Drops states at the start of a call: within one, all are needed at its end."""
        if len(self._states) > MOST_STATES:
            self._states = {}
