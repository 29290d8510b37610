"""What a chat completion says: its JSON as a record. Knows no server."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

CHARACTERS = 32
"""No text holds more characters per token than this: usual are four, and long words have ten."""

MOST_TOKENS = 2**20
"""No reply has more; a server that says so does not count."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer of the server.

    Attributes:
        content: what the model said.
        reasoning: what it thought before, where the server keeps that apart; else empty.
        num_tokens: generated tokens, both together, as the server counts hidden ones too; no
            fewer than `least_tokens`, no more than `MOST_TOKENS`.
        finished: whether the model came to its end, instead of to a limit.
    """

    content: str
    reasoning: str
    num_tokens: int
    finished: bool


def least_tokens(text: str) -> int:
    """A number of tokens below which no text of this length is written: its words, at least.

    >>> least_tokens("It is France."), least_tokens("x" * 320)
    (3, 10)
    """
    return max(len(text.split()), len(text) // CHARACTERS)


def cut(reply: Reply, max_tokens: int) -> Reply:
    """The reply without what a server wrote beyond the tokens that it was asked for at most; so
    that a runaway reply fills no shard. A reply that is cut has not come to its end."""
    longest = max_tokens * CHARACTERS
    content, reasoning = reply.content.strip(), reply.reasoning.strip()
    if len(content) <= longest and len(reasoning) <= longest:
        return reply
    content, reasoning = content[:longest], reasoning[:longest]
    return replace(reply, content=content, reasoning=reasoning, finished=False)


def read_reply(content: bytes) -> Reply:
    """What a chat completion says.

    Raises:
        ValueError: it is none; the message says in a few words what is wrong.
    """
    try:
        data = json.loads(content)
        choice = data["choices"][0]
        message, usage = choice["message"], data.get("usage")
        said = message.get("content")
        thought = message.get("reasoning_content") or message.get("reasoning")
    except (ValueError, RecursionError):
        raise ValueError("no JSON") from None
    except (LookupError, TypeError, AttributeError):
        raise ValueError("no choices with a message") from None
    thought = thought if isinstance(thought, str) else ""
    if said is None and thought:  # cut while it was thinking: a broken draw, but a reply
        said = ""
    if not isinstance(said, str):
        raise ValueError(f"content is {type(said).__name__}, no text")
    # Half a surrogate pair is JSON, but no UTF-8: it could not be written into a shard.
    said, thought = (text.encode(errors="replace").decode() for text in (said, thought))
    counted = usage.get("completion_tokens") if isinstance(usage, dict) else None
    least = least_tokens(f"{thought} {said}")
    counted = min(max(counted if type(counted) is int else 0, least), MOST_TOKENS)
    return Reply(said, thought, counted, choice.get("finish_reason") == "stop")
