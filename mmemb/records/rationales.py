"""Rationales: texts that a model wrote about one side, and a judge's scores of them.

See docs/method.md section 4 for rationales and depths, section 5 for contrasts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, final

import msgspec

from mmemb.records.schema import Count, Schema, to_json

DIRECT, SHORT, FULL = "direct", "short", "full"
"""Names of the depths at which a query can be embedded."""

GREEDY = -1
"""The seed that asks a writer for its one greedy draw instead of a sample."""

UNKNOWN = "unknown"
"""Provenance of rationales that others wrote."""


class _Draw(Schema):
    """The fields of a rationale."""

    text: str
    writer: str
    model: str
    revision: str
    prompt: str
    decoding: str
    seed: int
    num_tokens: Count
    log_probability: float | None = None
    depth: str = FULL
    count: Annotated[int, msgspec.Meta(ge=1)] = 1
    provenance: str = "one-sided"
    seeds: tuple[int, ...] = ()


@final
class Rationale(_Draw):
    """A text that a writer wrote about one side, with all that is needed to write it again.

    Attributes:
        text: the whole of it, tags included: `<think>...</think><answer>...</answer>`.
        depth: `full`, or `short` for a draw of its own that starts at `<answer>`.
        provenance: `one-sided` when the writer saw only this side, else `two-sided`, `unknown`.
        seed: the draw's seed, `GREEDY` for the greedy one.
        num_tokens: tokens the model generated for it.
        log_probability: sum over those tokens; None where a writer gives none.
        count: how many equal draws were merged into this one.
        seeds: of all of them, where there is more than one.
    """

    @property
    def mean_log_probability(self) -> float | None:
        """Mean over the generated tokens; None where the writer gives no figure."""
        if self.log_probability is None:
            return None
        # An empty draft has 0 tokens.
        return round(self.log_probability / max(self.num_tokens, 1), 4)

    @property
    def thinking(self) -> str:
        """The text between the think tags; empty for a short rationale."""
        return _between(self.text, "<think>", "</think>")

    @property
    def answer(self) -> str:
        """The text between the answer tags, behind the thought; empty if there is none."""
        text = self.text
        if "<think>" in text.partition("<answer>")[0]:
            # A thought may spell the tags of an answer.
            _, closed, behind = text.partition("<think>")[2].partition("</think>")
            text = behind if closed else text
        return _between(text, "<answer>", "</answer>")

    @property
    def plain(self) -> str:
        """Thought and answer without tags, one space between: what an embedder reads."""
        return " ".join(part for part in (self.thinking, self.answer) if part)


def _between(text: str, opening: str, closing: str) -> str:
    """The text between the first opening tag and the next closing one.

    Each is searched once, so that many tags that are never closed cost no more than one.
    """
    _, _, behind = text.partition(opening)
    inside, closed, _ = behind.partition(closing)
    return inside.strip() if closed else ""


def drafts_at(depth: str, rationales: Sequence[Rationale]) -> tuple[Rationale, ...]:
    """Returns the rationales that were written at a depth, in order."""
    return tuple(rationale for rationale in rationales if rationale.depth == depth)


def greedy_at(depth: str, rationales: Sequence[Rationale]) -> Rationale | None:
    """Returns the greedy draft of a depth, else its first one; None if there is none."""
    drafts = drafts_at(depth, rationales)
    greedy = (rationale for rationale in drafts if rationale.seed == GREEDY)
    return next(greedy, drafts[0] if drafts else None)


@final
class ScoredRationale(Schema):
    """A rationale with its contrasts and the selector's decision.

    `scores` holds `raw`, `gain`, `positive`, `margin`, `placebo_rank`, as far as computed; an
    unscored draft has none, is not kept and weighs 0.
    """

    rationale: Rationale
    scores: Mapping[str, float | None] = {}
    names_target: bool | None = None
    kept: bool = False
    weight: float = 0.0


@final
class ScoredJson(_Draw):
    """A draft of `rationales/` or `selected/`: a rationale and the selector's decision."""

    scores: dict[str, float | None] = {}
    names_target: bool | None = None
    kept: bool = False
    weight: Annotated[float, msgspec.Meta(ge=0)] = 0.0

    @property
    def scored(self) -> ScoredRationale:
        """The draft as a record."""
        # The fields of a rationale come first in both records, in the same order.
        values, num = msgspec.structs.astuple(self), len(Rationale.__struct_fields__)
        return ScoredRationale(Rationale(*values[:num]), *values[num:])


def scored_to_json(scored: ScoredRationale) -> dict[str, Any]:
    """One draft of `rationales/` or `selected/` as flat JSON data; see `ScoredJson`."""
    data = to_json(scored.rationale)

    # A draft that no selector has seen is saved without a decision.
    if scored.scores:
        data |= {"scores": dict(scored.scores), "names_target": scored.names_target}
        data |= {"kept": scored.kept, "weight": scored.weight}
    return data
