"""Rationales from an OpenAI-compatible chat server: vLLM, SGLang, transformers serve, or hosted.

See docs/method.md section 4.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import asdict
from io import BytesIO
from typing import TYPE_CHECKING, Any, ClassVar, final

from mmemb.llm.prompts.few_shot import FewShotPrompt
from mmemb.llm.prompts.pictures import pixels_of
from mmemb.llm.prompts.special_tokens import as_text_anywhere
from mmemb.rationales.chat_api.client import ChatClient
from mmemb.rationales.chat_api.reply import Reply, cut
from mmemb.rationales.writers.base import DrawingWriter, check_reads
from mmemb.records.hashing import stable_hash
from mmemb.records.inputs import Media, Side
from mmemb.records.rationales import GREEDY, SHORT, Rationale
from mmemb.storage.spec import arguments_of

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

_TAGS = re.compile(r"</?(?:think|answer)>")
_THOUGHT_END = "</think>"


@final
class ServerWriter(DrawingWriter):
    """Asks a chat server, one request per draw; docs/servers.md shows how to start one.

    Equal calls send equal requests and keep the order of their draws, whichever reply comes first.
    Whether equal requests get equal replies is the server's affair.

    If one draw fails for good, the call does (`ServerError`): its shard stays unwritten, and a
    rerun goes on there. Servers give no log-probabilities, and have no prompt state.

    Args:
        url: base of the server, such as `http://127.0.0.1:8000/v1`.
        model: name of the model on the server.
        prompt: path of the few-shot file (`FewShotPrompt`). Its `opening` is not sent, since few
            servers let words be put into a model's mouth; the examples show it.
        name: recorded as the rationales' writer.
        revision: revision of the served weights, recorded; no server tells it.
        max_new_tokens: longest draw, thought included. What `RationaleGenerator` keeps is bounded
            by its own `max_tokens`.
        temperature: temperature of sampled draws; the greedy draw is one at 0.
        top_p: nucleus of sampled draws.
        reads: modalities that the model understands, of `text`, `image`, `video` (frames, as
            pictures in their order).
        max_image_side: larger pictures are shrunk to this many pixels; null sends them as they are.
        concurrency: most requests at a time, of each process.
        timeout_s: longest time of one try: from connecting to the last byte of the reply. Servers
            are asked for whole replies, so it holds the time that a draw takes.
        retries: number of times that a request is sent again after a refused connection, a late
            reply, or a status of 429 or 5xx; after a reply that makes no sense, once.
        backoff_s: first pause before that, doubled each time; `Retry-After` is honoured.
        api_key_env: name of the environment variable with the key; null sends none. The key is read
            for every request, and is neither saved nor shown.
    """

    file_arguments: ClassVar[tuple[str, ...]] = ("prompt",)

    MACHINE_KEYS: ClassVar[frozenset[str]] = frozenset(
        {"url", "concurrency", "timeout_s", "retries", "backoff_s", "api_key_env"}
    )
    """Arguments about the place of the server and the patience with it: in no fingerprint."""

    def __init__(
        self,
        url: str,
        model: str,
        prompt: str,
        name: str = "server",
        revision: str = "",
        max_new_tokens: int = 96,
        temperature: float = 0.8,
        top_p: float = 0.95,
        reads: Sequence[str] = ("text",),
        max_image_side: int | None = None,
        concurrency: int = 16,
        timeout_s: float = 120.0,
        retries: int = 5,
        backoff_s: float = 1.0,
        api_key_env: str | None = "MMEMB_API_KEY",
    ) -> None:
        self.name, self.model, self.revision = name, model, revision
        self.prompt_path, self.prompt = str(prompt), FewShotPrompt.load(prompt)
        self.concepts = self.prompt.concepts

        self.max_new_tokens, self.temperature, self.top_p = max_new_tokens, temperature, top_p
        self.reads, self.max_image_side = check_reads(reads), max_image_side

        self.client = ChatClient(url, api_key_env, concurrency, timeout_s, retries, backoff_s)

        if self.max_new_tokens < 1 or self.temperature <= 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"max_new_tokens {self.max_new_tokens}, temperature {self.temperature}, top_p "
                f"{self.top_p}: expected at least 1, above 0, and in (0, 1]."
            )

        if self.max_image_side is not None and self.max_image_side < 1:
            raise ValueError(f"max_image_side {self.max_image_side}: expected pixels, or null.")

    def config(self) -> dict[str, Any]:
        init_args = {"prompt": self.prompt_path, "reads": sorted(self.reads)}
        return arguments_of(self, **init_args, **asdict(self.client))

    def identity(self) -> str:
        """Covers what is asked of which model, not where it is served or how patiently."""
        parts = (self.name, self.prompt.identity, self.model, self.revision, self.describe(0))
        return f"{stable_hash(*parts, sorted(self.reads), self.max_image_side, bits=64):016x}"

    def describe(self, seed: int) -> str:
        """Returns the `decoding` field of a rationale."""
        if seed == GREEDY:
            return f"greedy n={self.max_new_tokens}"
        return f"t={self.temperature:g} p={self.top_p:g} n={self.max_new_tokens}"

    def _draw(self, seeded_sides: Sequence[tuple[Side, int]]) -> list[Rationale]:
        """Asks for each draw.

        Raises:
            ServerError: a draw failed for good; requests under way were given up.
            ValueError: a picture was not decoded.
        """
        # Once for all draws about a side: pictures are encoded here.
        sides = {side.digest: side for side, _ in seeded_sides}
        messages = {digest: self._messages(side) for digest, side in sides.items()}
        replies = self.client.replies(
            [self._request(messages[side.digest], seed) for side, seed in seeded_sides]
        )
        return [
            self._rationale(r, seed) for r, (_, seed) in zip(replies, seeded_sides, strict=True)
        ]

    def _messages(self, side: Side) -> list[dict[str, Any]]:
        # The server's template and tokenizer are its own, and most take what a text spells for a
        # token.
        question = as_text_anywhere(self.prompt.question(side))
        urls = [data_url(media, self.max_image_side) for media in side.media]
        parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        return self.prompt.messages(question, parts)

    def _request(self, messages: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
        sampled = {"temperature": self.temperature, "top_p": self.top_p, "seed": short_seed(seed)}
        return {
            "model": self.model,
            "messages": messages,
            "max_tokens": self.max_new_tokens,
            "stream": False,
        } | ({"temperature": 0.0} if seed == GREEDY else sampled)

    def _rationale(self, reply: Reply, seed: int) -> Rationale:
        return Rationale(
            text=tagged(self.prompt, cut(reply, self.max_new_tokens)),
            writer=self.name,
            model=self.model,
            revision=self.revision,
            prompt=self.prompt.identity,
            decoding=self.describe(seed),
            seed=seed,
            num_tokens=reply.num_tokens,
            depth=self.prompt.depth,
        )


def tagged(prompt: FewShotPrompt, reply: Reply) -> str:
    """Writes a reply as the text of a rationale (`FewShotPrompt.rationale_text`).

    What the server kept apart as reasoning is the thought, whatever thought stands in the reply
    itself. So is a thought in tags, where the prompt's form has others. At depth `short` both are
    left out. An answer is closed if the model ended, or wrote the closing text before it was cut.
    """
    text, thought = reply.content.strip().removeprefix(prompt.opening), reply.reasoning
    short = prompt.depth == SHORT
    in_form = not short and _THOUGHT_END in prompt.between and prompt.between in text

    # Not in the prompt's own form, where the tags are part of it and `rationale_text` reads them.
    if not thought and _THOUGHT_END in text and not in_form:
        thought, _, text = text.partition(_THOUGHT_END)

    complete = reply.finished or prompt.finished(text)
    if not thought:
        return prompt.rationale_text(text, complete)

    body = text.strip().split(prompt.closing)[0] if prompt.closing else text
    answer = _untagged(body if short else body.split(prompt.between)[-1])

    end = "</answer>" if complete else ""
    before = "" if short else f"<think>{_untagged(thought)}</think>"
    return f"{before}<answer>{answer}{end}"


def _untagged(text: str) -> str:
    return " ".join(_TAGS.sub(" ", text).split())


def short_seed(seed: int) -> int:
    """Folds a seed of 63 bits to the 31 that every server takes.

    >>> short_seed(7), short_seed(7 << 31)
    (7, 7)
    """
    return (seed ^ seed >> 31 ^ seed >> 62) & 0x7FFFFFFF


def picture(media: Media, max_side: int | None = None) -> Picture:
    """Makes an image of Pillow, as other libraries take it.

    Args:
        media: a picture.
        max_side: longest side in pixels; a larger picture is shrunk.

    Raises:
        ValueError: the picture was not decoded.
    """
    from PIL import Image

    if media.pixels is None:
        raise ValueError(
            "A writer reads pictures, but they were not decoded. Set `decode: true` of "
            "SideDataModule, or take image and video out of `reads`."
        )

    image = Image.fromarray(pixels_of(media).permute(1, 2, 0).contiguous().cpu().numpy())
    if max_side is not None:
        # `thumbnail` keeps the proportions, and enlarges no picture.
        image.thumbnail((max_side, max_side))
    return image


def data_url(media: Media, max_side: int | None = None) -> str:
    """Returns a picture as a PNG in a URL; see `picture`."""
    buffer = BytesIO()
    picture(media, max_side).save(buffer, "PNG")
    return f"data:image/png;base64,{b64encode(buffer.getvalue()).decode()}"
