"""Chat completions: their JSON as records, without any server."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, final

import msgspec

from mmemb.records.schema import Excerpt, SchemaError, parse_json

CHARACTERS = 32
"""No text holds more characters per token than this: usual are four, and long words have ten."""

MOST_TOKENS = 2**20
"""No reply has more; a server that says so does not count."""

_ENDS = ("stop", "eos_token", "stop_sequence")
"""Reasons of an ended reply; the last two are of older versions of text-generation-inference."""


@final
@dataclass(frozen=True, slots=True)
class Reply:
    """One answer of the server.

    Attributes:
        content: the text that the model gave as its reply.
        reasoning: its thought before that, where the server keeps that apart; else empty.
        num_tokens: generated tokens, both together, as the server counts hidden ones too; no
            fewer than `least_tokens`, no more than `MOST_TOKENS`.
        finished: whether the model came to its end, instead of to a limit.
    """

    content: str
    reasoning: str
    num_tokens: int
    finished: bool


def least_tokens(text: str) -> int:
    """Returns the fewest tokens that a text of this length takes: its words, at least.

    >>> least_tokens("It is France."), least_tokens("x" * 320)
    (3, 10)
    """
    return max(len(text.split()), len(text) // CHARACTERS)


def cut(reply: Reply, max_tokens: int) -> Reply:
    """Cuts off what a server wrote beyond the number of tokens that it was asked for.

    So a runaway reply fills no shard. A reply that is cut is not `finished`.
    """
    longest = max_tokens * CHARACTERS
    content, reasoning = reply.content.strip(), reply.reasoning.strip()
    if len(content) <= longest and len(reasoning) <= longest:
        return reply

    content, reasoning = content[:longest], reasoning[:longest]
    return replace(reply, content=content, reasoning=reasoning, finished=False)


def read_reply(content: bytes) -> Reply:
    """Reads a chat completion; of several choices the first, since one is asked for.

    Raises:
        SchemaError: it is none; `problem` names the fault in a few words.
    """
    completion = parse_json(content, _CompletionJson, "the reply")
    choice = completion.choices[0]
    message = choice.message

    text, thought = message.content, message.reasoning_content or message.reasoning or ""
    if text is None and not thought:  # a call of a tool, or a refusal
        raise SchemaError("the reply: it holds no text - at `$.choices[0].message.content`.")
    text = text or ""  # cut while it was thinking: a broken draw, but a reply

    counted = completion.usage.completion_tokens if completion.usage else None
    # A count is corrected, not believed: of type int alone, since JSON's true is one in Python.
    least = least_tokens(f"{thought} {text}")
    counted = min(max(counted if type(counted) is int else 0, least), MOST_TOKENS)
    return Reply(text, thought, counted, choice.finish_reason in _ENDS)


@final
class _MessageJson(Excerpt):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


@final
class _ChoiceJson(Excerpt):
    message: _MessageJson
    finish_reason: str | None = None


@final
class _UsageJson(Excerpt):
    # Of any type, since a count is not believed in any case.
    completion_tokens: Any = None


@final
class _CompletionJson(Excerpt):
    """The fields of a chat completion that are read."""

    choices: Annotated[list[_ChoiceJson], msgspec.Meta(min_length=1)]
    usage: _UsageJson | None = None
