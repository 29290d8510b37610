"""Drafts: rationales under way behind prompts, where those that are whole make room for others.

One draft by itself is written so: read its prompt; draw a token and feed it, again and again, until
its form closes it. `write` does this for many at once, in the same four steps. A draft depends on
its prompt and its seed alone. Shapes: U prompts, R drafts under way, N of them that draw a token,
V vocabulary, T new tokens, H width of the model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from mmemb.llm.decoding.cached_rows import CachedRows
from mmemb.llm.decoding.sampling import Sampling, check_finite, choose_tokens, row_noise
from mmemb.records.rationales import GREEDY

_COMPACT_BELOW = 0.85  # copying the cache costs about a sixth of a step, so not at every step
_REFILL_BELOW = 0.8  # a step of 2 rows costs a third of one of 128


@final
@dataclass(slots=True)
class Draft:
    """One rationale under way.

    Attributes:
        seed: of its random numbers; `GREEDY` takes the likeliest tokens.
        most: how many tokens the model may draw.
        tokens: of the rationale up to now, those that were forced included.
        unread: the last ones of `tokens`, which the model has not read yet.
        num_drawn: tokens that the model has drawn.
        log_probability: of the drawn tokens, at temperature 1.
        is_closed: whether no more tokens are drawn.
        complete: whether it ended by itself, and not after `most` tokens.
        state_H: behind the last token, once the model has read that.
    """

    seed: int
    most: int
    noise_T: Tensor
    tokens: list[int] = field(default_factory=list)
    unread: deque[int] = field(default_factory=deque)
    num_drawn: int = 0
    log_probability: float = 0.0
    is_closed: bool = False
    complete: bool = False
    state_H: Tensor | None = None

    @classmethod
    def begin(cls, seed: int, most: int, opening: Iterable[int] = ()) -> Draft:
        """A draft whose first tokens are given."""
        draft = cls(seed, most, row_noise(seed, most))
        draft.add(opening)
        return draft

    def add(self, tokens: Iterable[int]) -> None:
        """Adds tokens, which the model has to read."""
        tokens = list(tokens)
        self.tokens += tokens
        self.unread += tokens


class DraftForm(ABC):
    """The rule by which drafts of one kind go on and end."""

    @abstractmethod
    def extend(self, draft: Draft, token: int) -> None:
        """Adds a token that the model has drawn to a draft; closes the draft where it ends.

        Args:
            draft: is changed; `num_drawn` counts the token already.
            token: the drawn one.
        """


@final
class PlainForm(DraftForm):
    """Drafts that end where a test of their tokens holds, and else are cut off.

    Args:
        is_complete: tells from a draft's tokens whether it has ended.
    """

    def __init__(self, is_complete: Callable[[list[int]], bool]) -> None:
        self.is_complete = is_complete

    def extend(self, draft: Draft, token: int) -> None:
        draft.add([token])
        draft.complete = self.is_complete(draft.tokens)
        draft.is_closed = draft.complete or draft.num_drawn >= draft.most


Read = Callable[[Sequence[int]], tuple[CachedRows, Sequence[Sequence[Draft]]]]
"""Numbers of prompts, sorted by length -> their rows, and the drafts that begin behind each."""


@torch.inference_mode()
def write(
    lengths: Sequence[int],
    sizes: Sequence[int],
    read: Read,
    form: DraftForm,
    sampling: Sampling,
    slots: int,
    reads_ends: bool = False,
) -> None:
    """Writes drafts behind prompts, at a cost that follows their real lengths.

    Args:
        lengths: of U prompts, in tokens.
        sizes: the most drafts behind each prompt, at most `slots`.
        read: reads some prompts; is called once for each prompt.
        form: of the drafts.
        sampling: how tokens are drawn.
        slots: most drafts under way together.
        reads_ends: whether drafts are read to their ends, for `state_H`.
    """
    assert max(sizes, default=0) <= slots

    # Sorted by length, so that neighbours are alike and little is padded.
    waiting = deque(sorted(range(len(lengths)), key=lambda number: -lengths[number]))
    drafts = _UnderWay(waiting, sizes, read, slots, reads_ends)
    while drafts.refill():
        drafts.draw(form, sampling)
        drafts.leave()
        drafts.feed()


def write_behind(
    rows: CachedRows, drafts: Sequence[Draft], form: DraftForm, sampling: Sampling
) -> None:
    """Writes one draft behind each of R rows, and reads it to its end, for `state_H`."""
    num = len(drafts)

    def read(numbers: Sequence[int]) -> tuple[CachedRows, list[list[Draft]]]:
        return rows, [[drafts[number]] for number in numbers]

    write([0] * num, [1] * num, read, form, sampling, slots=num, reads_ends=True)


@final
@dataclass(eq=False)
class _UnderWay:
    """Drafts under way together: row r of `rows` continues `live[r]`. See `write`."""

    waiting: deque[int]
    sizes: Sequence[int]
    read: Read
    slots: int
    reads_ends: bool
    live: list[Draft] = field(default_factory=list)
    rows: CachedRows = field(init=False)

    def refill(self) -> bool:
        """Reads waiting prompts if enough rows are free; returns whether drafts are under way."""
        while numbers := self._fitting(len(self.live)):
            for _ in numbers:
                self.waiting.popleft()
            rows, pools = self.read(numbers)
            places = [place for place, pool in enumerate(pools) for _ in pool]
            if not places:
                continue

            if places != list(range(len(pools))):
                rows.select(torch.tensor(places))
            if self.live:
                self.rows.join([rows])
            else:
                self.rows = rows
            self.live += [draft for pool in pools for draft in pool]
        return bool(self.live)

    def draw(self, form: DraftForm, sampling: Sampling) -> None:
        """Draws a token for each draft that has no forced one left to read."""
        places = [r for r, d in enumerate(self.live) if not (d.is_closed or d.unread)]
        if not places:
            return

        drafts = [self.live[place] for place in places]
        # A draft that is closed, or has tokens to read, needs no logits.
        logits_NV = self.rows.next_logits(torch.tensor(places))
        noise_N = torch.stack([draft.noise_T[draft.num_drawn] for draft in drafts])
        sampled_N = torch.tensor([draft.seed != GREEDY for draft in drafts])
        tokens_N, log_probs_N = choose_tokens(logits_NV, noise_N, sampled_N, sampling)
        check_finite(log_probs_N, self.rows.model, "the next token of a rationale")

        choices = zip(drafts, tokens_N.tolist(), log_probs_N.tolist(), strict=True)
        for draft, token, log_probability in choices:
            draft.num_drawn += 1
            draft.log_probability += log_probability
            form.extend(draft, token)

    def leave(self) -> None:
        """Drops rows whose drafts need no more reading, where that pays."""
        staying = [r for r, draft in enumerate(self.live) if self._goes_on(draft)]
        is_sparse = len(staying) < _COMPACT_BELOW * len(self.live)
        makes_room = len(staying) < len(self.live) and self._fitting(len(staying))
        if not (is_sparse or makes_room):
            return

        self.live = [self.live[row] for row in staying]
        if staying:
            self.rows.select(torch.tensor(staying))

    def feed(self) -> None:
        """Reads a token of each draft, or as many as all of them have ready."""
        if not self.live:
            return

        # A row that is done, but has not left, reads its last token again: nothing looks at it.
        going = [self._goes_on(draft) for draft in self.live]
        num = min(len(d.unread) for d, goes_on in zip(self.live, going, strict=True) if goes_on)
        ids = [
            [draft.unread.popleft() for _ in range(num)] if goes_on else draft.tokens[-1:] * num
            for draft, goes_on in zip(self.live, going, strict=True)
        ]
        self.rows.feed(torch.tensor(ids))

        for row, draft in enumerate(self.live):
            if going[row] and draft.is_closed and not draft.unread:
                draft.state_H = self.rows.state_RH[row]

    def _goes_on(self, draft: Draft) -> bool:
        return not draft.is_closed or (self.reads_ends and bool(draft.unread))

    def _fitting(self, num_live: int) -> list[int]:
        """The prompts that are to be read next, beside so many drafts under way."""
        if num_live and (num_live > _REFILL_BELOW * self.slots or not self.rows.can_join):
            return []

        # The drafts of a prompt start together, so that it is read once.
        numbers, free = list[int](), self.slots - num_live
        for number in self.waiting:
            free -= self.sizes[number]
            if free < 0:
                break
            numbers.append(number)
        return numbers
