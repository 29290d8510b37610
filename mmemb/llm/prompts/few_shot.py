"""The few-shot prompt of a language model: its file, its messages, and how output is read.

It needs no model, and of a tokenizer the chat template alone.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, final

from msgspec import structs

from mmemb.llm.prompts.chat_template import conversation_text
from mmemb.records.inputs import Side
from mmemb.records.rationales import FULL, SHORT, Rationale
from mmemb.records.schema import Schema, parse_json
from mmemb.records.text import check_template

Message = dict[str, Any]
"""A turn of a conversation: its `role` and `content`."""


@final
class ExampleJson(Schema):
    """A question with the reply that the model is shown."""

    query: str
    answer: str
    think: str = ""


class PromptJson(Schema, frozen=True):
    """A prompt file.

    Attributes:
        query: how a side is put as a question, with the fields `{instruction}` and `{text}`.
        closing: text at which decoding stops; empty = only at the model's end token.
        concepts: the concepts that the examples name; they belong to split `train`.
    """

    system: str
    examples: tuple[ExampleJson, ...]
    concepts: frozenset[str]
    query: str = "{text}"
    opening: str = "<think>"
    between: str = "</think><answer>"
    closing: str = "</answer>"
    depth: Literal["full", "short"] = FULL

    def __post_init__(self) -> None:
        if self.depth == FULL and not self.between:
            raise ValueError("between is empty, so that a thought has no end")

        # The template comes from a file: formats and attributes in its fields are refused.
        check_template(self.query, ("instruction", "text"), "query")


@final
class FewShotPrompt(PromptJson):
    """A prompt file. The reply's form is the file's choice, since every token costs time.

    A model is shown, and writes, `{opening}{think}{between}{answer}{closing}`; the opening
    is given. In every form a rationale is kept as `<think>...</think><answer>...</answer>`. At
    depth `short` there is no thought and no `between`.

    Attributes:
        identity: hash of the file's content; recorded in every rationale as its `prompt`.
    """

    identity: str = ""

    @classmethod
    def load(cls, path: str | Path) -> FewShotPrompt:
        """Reads a prompt file (JSON)."""
        try:
            content = Path(path).read_bytes()
        except FileNotFoundError:
            raise FileNotFoundError(
                f"There is no prompt file {path}. Give the few-shot prompt of the writer, such as "
                "experiments/configs/pocket/few_shot.json."
            ) from None

        data = parse_json(
            content,
            PromptJson,
            f"The prompt file {path} cannot be used",
            f"Expected a JSON object with keys from {sorted(PromptJson.__struct_fields__)}, whose "
            "examples hold query, think and answer.",
        )
        return cls(**structs.asdict(data), identity=hashlib.sha256(content).hexdigest()[:12])

    def reply(self, think: str, answer: str) -> str:
        """The whole reply of a model for a thought and an answer."""
        return f"{self.opening}{self._body(think, answer)}{self.closing}"

    def generated(self, rationale: Rationale) -> str:
        """The text behind the opening that a model has to write for a rationale: the inverse of
        `rationale_text`."""
        if not rationale.answer or not (rationale.thinking or self.depth == SHORT):
            raise ValueError(
                f"The rationale {rationale.text[:60]!r} lacks a thought or an answer, so a prompt "
                f"of depth {self.depth} cannot teach it. Learn from the rationales of one writer "
                "alone: set data.writer to its name."
            )
        return self._body(rationale.thinking, rationale.answer) + self.closing

    def _body(self, think: str, answer: str) -> str:
        return answer if self.depth == SHORT else f"{think}{self.between}{answer}"

    def question(self, side: Side) -> str:
        """The user's message for one side."""
        return self.query.format(instruction=side.instruction, text=side.text).strip()

    def messages(self, question: str, parts: Sequence[Mapping[str, Any]] = ()) -> list[Message]:
        """System message, examples and the question, behind the parts that stand for pictures."""
        turns: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        for example in self.examples:
            turns += [{"role": "user", "content": example.query}]
            turns += [{"role": "assistant", "content": self.reply(example.think, example.answer)}]
        text = [{"type": "text", "text": question}] if question else []
        return [*turns, {"role": "user", "content": [*parts, *text] if parts else question}]

    def render(self, tokenizer: Any, question: str, parts: Sequence[Mapping[str, Any]] = ()) -> str:
        """The whole prompt as text, up to and with the opening of the reply; see `messages`."""
        return conversation_text(tokenizer, self.messages(question, parts)) + self.opening

    def shared_text(self, tokenizer: Any) -> str:
        """The beginning that the prompts of all questions share."""
        # Two questions without a common beginning: only the fixed part of their prompts is shared.
        return os.path.commonprefix([self.render(tokenizer, probe) for probe in "ab"])

    def finished(self, generated: str) -> bool:
        """Tells whether the closing text has been written."""
        return bool(self.closing) and self.closing in generated

    def rationale_text(self, generated: str, complete: bool) -> str:
        """Generated text in tags; without a closed answer where the model broke the form.

        Args:
            generated: what the model wrote after the opening, end token excluded.
            complete: whether it came to an end; a text that was cut off gets no closing tag.
        """
        # A model may go on behind its closing text; only the first reply counts.
        body = generated.split(self.closing)[0] if self.closing else generated
        end = "</answer>" if complete else ""

        if self.depth == SHORT:
            return f"<answer>{body.strip()}{end}"

        think, between, answer = body.partition(self.between)

        # A thought without an end has no answer: its tag stays open, which marks the broken form.
        if not between:
            return f"<think>{think.strip()}"
        return f"<think>{think.strip()}</think><answer>{answer.strip()}{end}"
