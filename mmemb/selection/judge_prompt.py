"""Makes the prompt of a yes/no judge from a pair and a rationale, in pieces that pairs share.

The order is `query | candidate | rationale | question`: a query's piece is read once for all its
candidates, a candidate's piece once for all rationales. Every piece becomes tokens by itself, so
that the whole is the same with and without sharing (docs/method.md section 5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from mmemb.llm.prompts.chat_prompt import Prompt, PromptBuilder
from mmemb.llm.prompts.style import at_least_one
from mmemb.records.inputs import Side
from mmemb.records.rationales import Rationale

_MARKS = ("\x01", "\x02")
"""Characters at which the rendered conversation is cut; `_cut` takes them out of a side's text."""

_LETTERS = 32
"""Most letters per token, above any usual one; a text is cut to so many before it is tokenized."""


@dataclass(frozen=True)  # no slots, not final: jsonargparse refuses such defaults
class JudgeStyle:
    """Wording of the question; for a reranker's checkpoint the one that it was trained with.

    Attributes:
        system: system turn of the conversation; empty = none.
        instruction: stands before the query's instruction, if it has one.
        query: stands before the query.
        candidate: stands before the candidate.
        rationale: stands before the rationale, if there is one.
        question: question at the end.
        yes: words for yes, whose first tokens' probabilities are added. In YAML quote
            the keys and the words, `"yes": ["yes"]`: without quotes they are true and false.
        no: words for no, `"no": ["no"]`.
        max_text_tokens: longest text of a query, a candidate or a rationale; a longer one is cut
            at its end, a rationale at its beginning.
    """

    system: str = "You judge whether a candidate is what a query asks for."
    instruction: str = "Instruction: "
    query: str = "Query: "
    candidate: str = "\nCandidate: "
    rationale: str = "\nThoughts about the query: "
    question: str = "\nIs this candidate what the query asks for? Answer yes or no."
    yes: tuple[str, ...] = ("yes", "Yes")
    no: tuple[str, ...] = ("no", "No")
    max_text_tokens: int = 512

    def __post_init__(self) -> None:
        at_least_one(max_text_tokens=self.max_text_tokens)
        for name, words in (("yes", self.yes), ("no", self.no)):
            if isinstance(words, str) or not all(isinstance(word, str) for word in words):
                raise ValueError(
                    f"{name} is {words!r}; expected a list of words, each in quotes, such as "
                    f'["{name}"]: YAML reads a bare yes or no as true or false.'
                )


@final
class JudgePrompts:
    """Makes the pieces of a prompt.

    Args:
        builder: prompt builder of the judge's model.
        style: wording.

    Raises:
        ValueError: the words for yes and no begin with the same token.
    """

    def __init__(self, builder: PromptBuilder, style: JudgeStyle) -> None:
        self.builder, self.style = builder, style
        self.yes_ids, self.no_ids = (self._first_tokens(words) for words in (style.yes, style.no))

        # With a shared first token the two probabilities would overlap.
        if self.yes_ids & self.no_ids or not (self.yes_ids and self.no_ids):
            raise ValueError(
                f"yes {list(style.yes)} and no {list(style.no)} begin with the same tokens (or "
                "none) under this model's tokenizer: choose words that differ in their first token."
            )

    def query(self, query: Side) -> Prompt:
        """Makes the piece up to the candidate."""
        return self.builder.read(self._pieces(query, Side(text="-"))[0], query)

    def candidate(self, query: Side, candidate: Side) -> Prompt:
        """Makes the piece between query and rationale."""
        return self.builder.read(self._pieces(query, candidate)[1], candidate)

    def ending(self, query: Side, rationale: Rationale | None) -> Prompt:
        """Makes the piece with the rationale, the question and the opening of the judge's turn."""
        style, opening = self.style, ""
        if rationale is not None and rationale.plain:
            opening = style.rationale + self._cut(rationale.plain, at_end=False)
        return self.builder.read(opening + self._pieces(query, Side(text="-"))[2], Side())

    def _pieces(self, query: Side, candidate: Side) -> Sequence[str]:
        style, content = self.style, self.builder.content
        instruction = self._cut(query.instruction)
        opening = f"{style.instruction}{instruction}\n" if instruction else ""

        parts = [_text(opening + style.query), *content(query, self._cut(query.text))]
        parts += [_text(_MARKS[0] + style.candidate)]
        parts += [*content(candidate, self._cut(candidate.text)), _text(_MARKS[1] + style.question)]

        system = [{"role": "system", "content": [_text(style.system)]}] if style.system else []
        rendered = self.builder.render([*system, {"role": "user", "content": parts}])

        # A template that rewrites the text of a turn may lose a mark, or repeat one.
        pieces = rendered.replace(_MARKS[1], _MARKS[0]).split(_MARKS[0])
        if len(pieces) != 3:
            raise ValueError(
                "The model's chat template changes the text of a turn, so that pairs cannot share "
                "it. Use a model whose template keeps texts as they are."
            )
        return pieces

    def _cut(self, text: str, at_end: bool = True) -> str:
        tokenizer, most = self.builder.tokenizer, self.style.max_text_tokens

        # Time may grow with the square of a text without blanks, so letters are cut before tokens.
        text = text[: most * _LETTERS] if at_end else text[-most * _LETTERS :]

        # A mark inside the data's text would cut the conversation in a wrong place.
        for mark in _MARKS:
            text = text.replace(mark, " ")
        text = self.builder.plain(text)

        ids = tokenizer.encode(text, add_special_tokens=False)
        if len(ids) <= most:
            return text

        # Decoded tokens may spell a special token again.
        return self.builder.plain(tokenizer.decode(ids[:most] if at_end else ids[-most:]))

    def _first_tokens(self, words: Sequence[str]) -> frozenset[int]:
        encode = self.builder.tokenizer.encode
        ids_of_words = [encode(word, add_special_tokens=False) for word in words]
        return frozenset(ids[0] for ids in ids_of_words if ids)


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}
