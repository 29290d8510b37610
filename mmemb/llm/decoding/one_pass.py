"""Thinking and embedding in one sequence: the prompt's cache is what the rationale goes on from.

Samples that do not reason leave after the prompt, others when they are done; lengths are sorted.
Shapes: R rows, H width, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
from torch import Tensor, nn

from mmemb.llm.decoding.cached_rows import CachedRows
from mmemb.llm.decoding.finite import check_finite
from mmemb.llm.decoding.sampling import Sampling, choose_tokens, row_noise
from mmemb.llm.prompts.chat_prompt import Prompt
from mmemb.records.rationales import FULL, GREEDY, SHORT, Rationale

_COMPACT_BELOW = 0.85
"""Copying the cache costs about a sixth of a step, so not at every step."""

TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def opening_of(depth: str) -> str:
    """What is put into the model's mouth."""
    return "<answer>" if depth == SHORT else "<think>"


def missing_tags(text: str) -> str:
    """What a rationale lacks to be whole.

    >>> missing_tags("<think>a flag"), missing_tags("<answer>Peru")
    ('</think><answer></answer>', '</answer>')
    """
    return _whole_part(text)[1]


def whole_text(rationale: Rationale) -> str:
    """The rationale's text up to its closing tag; what it lacks of its tags is added."""
    text = rationale.text
    if not text.startswith(("<think>", "<answer>")):
        text = f"<answer>{rationale.plain}</answer>"
    return "".join(_whole_part(text))


def _whole_part(text: str) -> tuple[str, str]:
    """The text up to its last tag in the right order (all of it, if some is missing), and those
    that are missing. A tag out of order is a part of the text."""
    tags, place = TAGS[1:] if text.startswith("<think>") else TAGS[3:], 0
    for number, tag in enumerate(tags):
        found = text.find(tag, place)
        if found < 0:
            return text, "".join(tags[number:])
        place = found + len(tag)
    return text[:place], ""


@final
@dataclass(slots=True)
class Writing:
    """One rationale under way.

    Attributes:
        forced: tokens that are fed whatever the model says.
        most: how many tokens the model may choose.
        tokens: all of the rationale's, forced ones included.
        num_drawn: tokens that the model chose.
        is_closing: whether `forced` holds the rationale's end.
        is_whole: whether its last token has been put into `tokens`.
    """

    row: int
    forced: deque[int]
    noise: Tensor
    is_sampled: bool
    most: int
    tokens: list[int] = field(default_factory=list)
    num_drawn: int = 0
    log_probability: float = 0.0
    is_closing: bool = False
    is_whole: bool = False


@final
class Writer:
    """Writes rationales behind prompts.

    Args:
        model: of transformers, with a language-model head.
        tokenizer: of the model.
        end_ids: tokens at which a reply ends; special tokens are among them, so that no rationale
            holds what a prompt would take for a turn or a picture.
        sampling: settings of the draws.
        longest: depth -> most tokens; at others as `sampling` says, which is the largest.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        end_ids: frozenset[int],
        sampling: Sampling,
        longest: Mapping[str, int] | None = None,
    ) -> None:
        self.model, self.tokenizer, self.end_ids = model, tokenizer, end_ids
        self.sampling, self._longest = sampling, dict(longest or {})

    @property
    def room(self) -> int:
        """The most tokens of a rationale, its tags included."""
        tags = len(self._encoded("".join(TAGS)))
        return self.sampling.max_new_tokens + 2 * tags

    def begin(self, row: int, depth: str, seed: int) -> Writing:
        """A rationale of a depth about a row."""
        most = self._longest.get(depth, self.sampling.max_new_tokens)
        opening = self._encoded(opening_of(depth))
        return Writing(row, deque(opening), row_noise(seed, most), seed != GREEDY, most)

    def write(self, rows: CachedRows, writings: Sequence[Writing]) -> dict[int, Tensor]:
        """Goes on with R rows until every rationale is whole.

        Returns:
            Row -> the state (H,) behind its last token, which is fed for this.
        """
        live, states = list(writings), {}
        while live:
            rows.feed(self._next(rows, live))
            ended = [n for n, w in enumerate(live) if w.is_whole and w.row not in states]
            states |= {live[n].row: rows.state_RH[n] for n in ended}
            goes_on = [n for n, w in enumerate(live) if not w.is_whole]
            if goes_on and len(goes_on) < _COMPACT_BELOW * len(live):
                rows.select(torch.tensor(goes_on))
            elif goes_on:
                continue
            live = [live[n] for n in goes_on]
        return states

    def text(self, writing: Writing) -> str:
        """The rationale with its tags."""
        return self.tokenizer.decode(writing.tokens)  # type: ignore[no-any-return]

    def rationale(
        self,
        writing: Writing,
        seed: int,
        worker: str,
        model: str,
        revision: str = "",
        prompt: str = "",
    ) -> Rationale:
        """What was written, with its origin (see `Rationale`)."""
        text = self.text(writing)
        return Rationale(
            text=text,
            worker=worker,
            model=model,
            revision=revision,
            prompt=prompt,
            decoding=replace(self.sampling, max_new_tokens=writing.most).describe(seed),
            seed=seed,
            num_tokens=len(writing.tokens),
            log_probability=round(writing.log_probability, 4),
            depth=FULL if text.startswith("<think>") else SHORT,
        )

    def _next(self, rows: CachedRows, live: Sequence[Writing]) -> Tensor:
        """(R, Q) tokens to feed: one a row, or as many as are forced in all rows."""
        open_rows = [w for w in live if not w.is_whole]
        together = min(len(w.forced) for w in open_rows)
        idle = {id(w) for w in live if w.is_whole}
        if together:
            for writing in open_rows * together:
                self._take(writing, 0, 0.0)
        else:
            self._draw(rows, live)
        num = together or 1
        return torch.tensor(
            [w.tokens[-1:] * num if id(w) in idle else w.tokens[-num:] for w in live]
        )

    def _draw(self, rows: CachedRows, live: Sequence[Writing]) -> None:
        noise_R = torch.stack([w.noise[min(w.num_drawn, w.most - 1)] for w in live])
        sampled_R = torch.tensor([w.is_sampled for w in live])
        chosen_R, log_probs_R = choose_tokens(rows.logits_RV, noise_R, sampled_R, self.sampling)
        open_R = torch.tensor([not w.is_whole for w in live])
        check_finite(log_probs_R[open_R], self.model, "the next token of a rationale")
        drawn = zip(live, chosen_R.tolist(), log_probs_R.tolist(), strict=True)
        for writing, token, log_probability in drawn:
            self._take(writing, token, log_probability)

    def _take(self, writing: Writing, token: int, log_probability: float) -> None:
        """Appends the next token: a forced one, the chosen one, or the first of the closing."""
        if writing.is_whole:
            return
        if not writing.forced:
            writing.num_drawn += 1
            writing.log_probability += log_probability
            if token in self.end_ids:
                self._close(writing)
            else:
                writing.tokens.append(token)
                # A tag ends with this letter: most tokens need no look at the whole text.
                may_end = ">" in self.tokenizer.decode([token])
                if may_end and not missing_tags(self.text(writing)):
                    writing.is_whole = True
                elif writing.num_drawn >= writing.most:
                    self._close(writing)
                return
        writing.tokens.append(writing.forced.popleft())
        writing.is_whole = writing.is_closing and not writing.forced

    def _close(self, writing: Writing) -> None:
        writing.forced.extend(self._encoded(missing_tags(self.text(writing))))
        writing.is_closing = True

    def _encoded(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)  # type: ignore[no-any-return]


@torch.inference_mode()
def draft(
    writer: Writer,
    prompts: Sequence[Prompt],
    draws: Sequence[tuple[int, str, int]],
    slots: int,
    read: Callable[[Sequence[Prompt]], CachedRows],
) -> list[Writing]:
    """Writes several rationales behind each prompt, which is read once for those under way.

    Args:
        writer: of rationales.
        prompts: U of them.
        draws: prompt, depth and seed of each rationale.
        slots: most rationales under way together.
        read: reads prompts, at most `slots` at a time.

    Returns:
        One for each draw.
    """
    # Neighbours are of like length, and the draws of a prompt stay together.
    order = sorted(range(len(draws)), key=lambda n: (-len(prompts[draws[n][0]]), draws[n][0]))
    found: dict[int, Writing] = {}
    for start in range(0, len(order), slots):
        numbers = order[start : start + slots]
        asked = list(dict.fromkeys(draws[n][0] for n in numbers))
        rows = read([prompts[prompt] for prompt in asked])
        rows.select(torch.tensor([asked.index(draws[n][0]) for n in numbers]))
        writings = [writer.begin(n, *draws[n][1:]) for n in numbers]
        writer.write(rows, writings)
        found |= zip(numbers, writings, strict=True)
    return [found[n] for n in range(len(draws))]
