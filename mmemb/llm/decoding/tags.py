"""Tags of rationales: those that a text lacks, and drafts that open and close with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, final

from mmemb.llm.decoding.drafts import Draft, DraftForm
from mmemb.llm.decoding.sampling import Sampling
from mmemb.records.rationales import FULL, SHORT, Rationale

TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def missing_tags(text: str) -> str:
    """The tags that a rationale lacks to be whole.

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
    # Each tag is looked for behind the one before it.
    tags, end = TAGS[1:] if text.startswith("<think>") else TAGS[3:], 0
    for number, tag in enumerate(tags):
        start = text.find(tag, end)
        if start < 0:
            return text, "".join(tags[number:])
        end = start + len(tag)
    return text[:end], ""


@final
@dataclass(frozen=True, eq=False)
class TaggedForm(DraftForm):
    """Rationales whose opening tag is given; tags that the model left out are added.

    Args:
        tokenizer: of the model.
        end_ids: tokens at which a reply ends; special tokens are among them, so that no rationale
            holds what a prompt would take for a turn or a picture.
        sampling: settings of the draws.
        longest: depth -> most tokens; at others as `sampling` says, which is the largest.
    """

    tokenizer: Any
    end_ids: frozenset[int]
    sampling: Sampling
    longest: Mapping[str, int] = field(default_factory=dict)

    @property
    def room(self) -> int:
        """The most tokens of a rationale, its tags included."""
        return self.sampling.max_new_tokens + 2 * len(self._encoded("".join(TAGS)))

    def begin(self, depth: str, seed: int) -> Draft:
        """A rationale of a depth."""
        most = self.longest.get(depth, self.sampling.max_new_tokens)
        return Draft.begin(seed, most, self._encoded("<answer>" if depth == SHORT else "<think>"))

    def extend(self, draft: Draft, token: int) -> None:
        if token not in self.end_ids:
            draft.add([token])
            # A tag ends with this letter: most tokens need no look at the whole text.
            may_end = ">" in self.tokenizer.decode([token])
            draft.complete = may_end and not missing_tags(self.text(draft))

        draft.is_closed = draft.complete or token in self.end_ids or draft.num_drawn >= draft.most

        # The model reads the closing tags as well: the state behind them is the rationale's vector.
        if draft.is_closed:
            draft.add(self._encoded(missing_tags(self.text(draft))))

    def text(self, draft: Draft) -> str:
        """The rationale with its tags."""
        return self.tokenizer.decode(draft.tokens)  # type: ignore[no-any-return]

    def rationale(
        self, draft: Draft, writer: str, model: str, revision: str = "", prompt: str = ""
    ) -> Rationale:
        """A draft with its origin (see `Rationale`)."""
        text = self.text(draft)
        return Rationale(
            text=text,
            writer=writer,
            model=model,
            revision=revision,
            prompt=prompt,
            decoding=replace(self.sampling, max_new_tokens=draft.most).describe(draft.seed),
            seed=draft.seed,
            num_tokens=len(draft.tokens),
            log_probability=round(draft.log_probability, 4),
            depth=FULL if text.startswith("<think>") else SHORT,
        )

    def _encoded(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)  # type: ignore[no-any-return]
