"""Texts of rows and of models: rationales, replies, questions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import Random
from typing import Any, ClassVar, final

from datamodules.prepare.cells import CellError, text_of
from mmemb.llm import FewShotPrompt
from mmemb.rationales.chat_api.client import seconds
from mmemb.rationales.chat_api.reply import MOST_TOKENS, Reply, cut, least_tokens
from mmemb.rationales.writers.server import tagged
from mmemb.records.inputs import Side
from mmemb.records.rationales import Rationale
from mmemb.records.text import check_unicode, has_text
from tests.fixtures.chat_server import write_prompts
from tests.fuzzing.kind import Kind
from tests.fuzzing.mutations import mutate_text


def check_texts(texts: Iterable[Any]) -> None:
    """Asserts that texts can be written down."""
    for text in texts:
        assert isinstance(text, str), f"{type(text).__name__} instead of a text"
        assert text == text.encode(errors="replace").decode(), "half of a surrogate pair"


@final
class Texts(Kind):
    """A text of UTF-8, in which surrogates may stand."""

    name: ClassVar[str] = "texts"

    def make_seeds(self) -> Sequence[bytes]:
        write_prompts(self.folder)
        self._prompts = [FewShotPrompt.load(path) for path in sorted(self.folder.glob("*.json"))]
        return [
            b"<think>It is Italy.</think><answer>Italy</answer>",
            b"It is France. => France",
            "the café at night \U0001f600".encode(),
            b"<answer>B</answer>",
            b"120",
        ]

    def mutate(self, data: bytes, random: Random) -> bytes:
        text = mutate_text(data.decode(errors="surrogatepass"), random)
        if random.random() < 0.02:
            text = text[:2000] * random.choice((50, 500))
        return text[:2_000_000].encode(errors="surrogatepass")

    def marks(self, data: bytes) -> Sequence[str]:
        return ("The text",)

    def read(self, data: bytes) -> None:
        text = data.decode(errors="surrogatepass")
        assert has_text(text) == bool(text.strip() and has_text(text.strip()))
        assert seconds(text) >= 0
        self._read_cell(text)
        for prompt in self._prompts:
            _read_reply(prompt, text)
        check_unicode(text)
        check_texts([text])

    def _read_cell(self, text: str) -> None:
        try:
            check_texts([text_of(text)])
        except CellError as error:
            check_texts([str(error)])


def _read_reply(prompt: FewShotPrompt, text: str) -> None:
    assert prompt.question(Side(text=text)) == text.strip()
    reply = cut(Reply(text, text[::-1][:100], least_tokens(text), True), 96)
    said = tagged(prompt, reply)
    assert len(said) < 3 * 96 * 32 + 100, len(said)
    assert 0 <= min(least_tokens(text), MOST_TOKENS) <= max(len(text), 1)
    rationale = Rationale(said, "w", "m", "r", prompt.identity, "d", 0, 1)
    for part in (rationale.thinking, rationale.answer):
        assert part in said
    whole = Rationale(text, "w", "m", "r", prompt.identity, "d", 0, 1)
    # Thought and answer lie apart, unless it is the answer that spells a thought.
    most = len(text) if text.startswith("<think>") else 2 * len(text) + 1
    assert len(whole.plain) <= most
