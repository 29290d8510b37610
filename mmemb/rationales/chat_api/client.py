"""Chat requests to an OpenAI-compatible server over HTTP: a few at a time, with retries.

This module depends on neither sides nor rationales.
"""

from __future__ import annotations

import json
import logging
import os
import re
import ssl
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal, final

from mmemb.rationales.chat_api.connection import check_url, exchange, open_transport
from mmemb.rationales.chat_api.reply import Reply, read_reply
from mmemb.records.schema import SchemaError

if TYPE_CHECKING:
    import httpx2

LONGEST_BACKOFF_S = 60.0
LONGEST_RETRY_AFTER_S = 600.0
"""A server that asks for more patience than this has failed."""

LONGEST_DATE = 64
"""Characters; a date of HTTP has 29."""

SHOWN = 200
"""Characters of a reply that an error shows."""

_START = "Start it, or set `url` to where it listens; raise `timeout_s` if it is only slow."
_TRUST = "Let SSL_CERT_FILE name the certificate of its authority."
_MOVED = (
    "Redirects are not followed, since a key must reach no other host: set `url` to the new place."
)
_REFUSED = (
    "Check `url` (it ends in /v1), `model` (the name that the server knows), `max_new_tokens` "
    "(with the prompt within its context) and `reads` (whether the model takes pictures)."
)
_CROWDED = "Look into its log; lower `concurrency` or raise `retries`. Finished shards are kept."
_CHAT = "Is `url` the base of an OpenAI-compatible server? Look into its log."

_NO_VARIABLE = (
    "a variable, and name that as `api_key_env` (of a saved folder: servers={HOST: VARIABLE}, "
    "--server HOST=VARIABLE)"
)

_LOG = logging.getLogger(__name__)


@final
class ServerError(ValueError):
    """A chat server that cannot be used, with the server, its answer, and advice."""


@final
@dataclass(frozen=True)
class ChatClient:
    """Asks a server, each request on a connection of its own.

    Redirects are not followed, so a key reaches no other host; `open_transport` says which way a
    request takes. A client is settings and nothing else: it may be pickled, and used after a fork.

    Attributes:
        url: base of the server's paths: `http://127.0.0.1:8000/v1`.
        api_key_env: name of the environment variable that holds the key, or None for no key. It is
            read for every request and kept nowhere.
        concurrency: most requests at a time.
        timeout_s: longest time of one try: from connecting to the last byte of the reply.
        retries: number of times that a request is sent again after a fault that may pass.
        backoff_s: first pause before that; each further one is twice as long, up to a minute.
    """

    url: str
    api_key_env: str | None
    concurrency: int
    timeout_s: float
    retries: int
    backoff_s: float

    def __post_init__(self) -> None:
        check_url(self.url)
        name = self.api_key_env
        if name is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(  # without the value: it may be the key itself
                "api_key_env is no name of an environment variable (letters, digits, _). Put the "
                "key into such a variable, and here the variable's name; never the key itself."
            )
        if self.concurrency < 1 or self.retries < 0 or self.timeout_s <= 0 or self.backoff_s < 0:
            raise ValueError(
                f"concurrency {self.concurrency}, retries {self.retries}, timeout_s "
                f"{self.timeout_s}, backoff_s {self.backoff_s}: expected at least 1, at least 0, "
                "above 0, at least 0."
            )

    def replies(self, requests: Sequence[Mapping[str, Any]]) -> list[Reply]:
        """Sends every request; one that fails for good ends all others at once.

        Args:
            requests: JSON bodies of `chat/completions`.

        Returns:
            The replies in the order of the requests.

        Raises:
            ServerError: a request failed; the first error of all.
        """
        from anyio.from_thread import start_blocking_portal

        if not requests:
            return []

        # Here and not in the thread below: a thread that has used OpenSSL takes a lock of its when
        # it ends, after `join` has returned, and a process forked then could never take that lock.
        try:
            transport = open_transport(self.url)
        except ValueError as error:
            raise ServerError(f"The chat server {self.url} cannot be reached: {error}") from None

        # An event loop of its own, since the caller may run one already, as notebooks do. A signal
        # interrupts the caller, and leaving the block cancels what is under way.
        with start_blocking_portal(name="chat requests") as portal:
            return portal.call(self._replies, requests, transport)

    async def _replies(
        self, requests: Sequence[Mapping[str, Any]], transport: httpx2.AsyncHTTPTransport
    ) -> list[Reply]:
        from anyio import CapacityLimiter, create_task_group

        call, limiter = _Call(transport), CapacityLimiter(self.concurrency)
        replies: dict[int, Reply] = {}

        async def ask(number: int, request: Mapping[str, Any]) -> None:
            async with limiter:
                replies[number] = await self._ask(request, call)

        # The first error cancels all others, so it stands alone in its group.
        try:
            async with transport, create_task_group() as group:
                for number, request in enumerate(requests):
                    group.start_soon(ask, number, request)
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [replies[number] for number in range(len(requests))]

    async def _ask(self, request: Mapping[str, Any], call: _Call) -> Reply:
        from anyio import sleep

        body = json.dumps(request, allow_nan=False).encode()
        bounds = {"passing": self.retries, "odd": min(1, self.retries), "lasting": 0}

        # Each kind of fault has its own bound; the pause grows with all of them.
        faults: Counter[str] = Counter()

        while True:
            try:
                return await self._attempt(body, call.transport)
            except _FaultError as fault:
                faults[fault.kind] += 1
                tries = f" ({faults.total()} tries)" if faults.total() > 1 else ""
                problem = f"The chat server {self.url} {fault.problem}{tries}."
                if faults[fault.kind] > bounds[fault.kind]:
                    raise ServerError(f"{problem} {fault.advice}") from None

                # The exponent is bounded, since a float overflows at 2^1024.
                doubled = 2.0 ** min(faults.total() - 1, 30)
                pause = min(self.backoff_s * doubled, LONGEST_BACKOFF_S)

                if not call.has_warned:
                    _LOG.warning("%s It is asked again.", problem)
                call.has_warned = True
                await sleep(max(pause, fault.pause_s))

    async def _attempt(self, body: bytes, transport: httpx2.AsyncHTTPTransport) -> Reply:
        key = self._key()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            answer = await exchange(transport, self.url, body, headers, self.timeout_s)
        except ssl.SSLCertVerificationError as error:
            raise _FaultError(
                "lasting", f"is not trusted: {error.verify_message}", _TRUST
            ) from None
        except ConnectionError as error:
            reason = _shown(str(error), key)
            raise _FaultError("passing", f"did not answer: {reason}", _START) from None
        except ValueError as error:
            raise _FaultError("odd", f"answered what cannot be read: {error}", _CHAT) from None

        if not 200 <= answer.status < 300:
            excerpt = _shown(answer.content.decode(errors="replace"), key)
            raise self._refused(answer.status, answer.retry_after, excerpt)
        try:
            return read_reply(answer.content)
        except SchemaError as error:
            excerpt = _shown(answer.content.decode(errors="replace"), key)
            problem = error.problem.removesuffix(".")
            raise _FaultError(
                "odd", f"answered no chat completion ({problem}): {excerpt}", _CHAT
            ) from None

    def _refused(self, status: int, retry_after: str, excerpt: str) -> _FaultError:
        problem = f"answered {status}: {excerpt}"
        # Crowded and broken servers recover; any other refusal would come again.
        if status == 429 or status >= 500:
            pause_s = seconds(retry_after)
            if pause_s <= LONGEST_RETRY_AFTER_S:
                return _FaultError("passing", problem, _CROWDED, pause_s)
            return _FaultError("lasting", f"{problem} (asks to wait {pause_s:.0f} s)", _CROWDED)

        if status in (401, 403):
            name = f"${self.api_key_env}" if self.api_key_env else _NO_VARIABLE
            return _FaultError("lasting", problem, f"Put a key that it accepts into {name}.")

        return _FaultError("lasting", problem, _MOVED if 300 <= status < 400 else _REFUSED)

    def _key(self) -> str:
        key = os.environ.get(self.api_key_env, "").strip() if self.api_key_env else ""

        if key.isascii() and key.isprintable() and " " not in key:
            return key
        raise ServerError(
            f"The key in ${self.api_key_env} holds blanks or letters that no key has. Set it anew."
        )


def seconds(retry_after: str) -> float:
    """Returns the seconds that a `Retry-After` header asks to wait; 0 if it names no time.

    The header holds a number of seconds or a date.

    >>> seconds("2"), seconds("Wed, 21 Oct 2015 07:28:00 GMT"), seconds("soon"), seconds("-5")
    (2.0, 0.0, 0.0, 0.0)
    >>> seconds("9" * 400)
    inf
    """
    header = retry_after.strip()
    if re.fullmatch(r"\d+(\.\d+)?", header, re.ASCII):
        return float(header)

    # A server may send a header of any length, and no date is so long.
    if len(header) > LONGEST_DATE:
        return 0.0
    try:
        until = parsedate_to_datetime(header)
        # A date of HTTP is in GMT, also where it does not name the zone.
        until = until.astimezone(UTC) if until.tzinfo else until.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return 0.0
    return max((until - datetime.now(UTC)).total_seconds(), 0.0)


@final
@dataclass(eq=False)
class _FaultError(Exception):
    """A failed try: its kind, the problem, an advice, and the seconds that the server asks for.

    A `passing` fault is tried again up to `retries` times, an `odd` one once, a `lasting` one
    never.
    """

    kind: Literal["passing", "odd", "lasting"]
    problem: str
    advice: str
    pause_s: float = 0.0


@final
@dataclass
class _Call:
    """State that the requests of one call share: the transport, and whether they have warned."""

    transport: httpx2.AsyncHTTPTransport
    has_warned: bool = False


def _shown(text: str, key: str) -> str:
    """The beginning of a server's answer, on one line and without the key."""
    # First of all: a server may repeat the request, and a cut key would not be found.
    text = text.replace(key, "***") if key else text
    text = text[: SHOWN * SHOWN]  # the rest costs time and shows nothing
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return repr(text[:SHOWN]) if text else "nothing"
