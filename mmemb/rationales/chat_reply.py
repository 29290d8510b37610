"""What a chat completion says: its JSON as a record. Knows no server."""

from __future__ import annotations

import json
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer of the server.

    Attributes:
        content: what the model said.
        reasoning: what it thought before, where the server keeps that apart; else empty.
        num_tokens: generated tokens, both together; words, where the server does not count.
        finished: whether the model came to its end, instead of to a limit.
    """

    content: str
    reasoning: str
    num_tokens: int
    finished: bool


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
    if type(counted) is not int or counted < 0:
        counted = len(f"{thought} {said}".split())
    return Reply(said, thought, counted, choice.get("finish_reason") == "stop")
