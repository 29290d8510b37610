"""Chat requests to an OpenAI-compatible server over HTTP: a few at a time, tried again if need be.

Knows neither sides nor rationales.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from http.client import HTTPException, IncompleteRead
from typing import Any, Literal, final
from urllib.parse import urlsplit

from mmemb.rationales.chat_connection import check_url, make_connection
from mmemb.rationales.chat_reply import Reply, read_reply

LONGEST_BACKOFF_S = 60.0
LONGEST_RETRY_AFTER_S = 600.0
"""A server that asks for more patience than this has failed."""

LARGEST_REPLY = 16 * 2**20
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

_LOG = logging.getLogger(__name__)


@final
class ServerError(ValueError):
    """A chat server that cannot be used, in one paragraph: which, what it said, what to do."""


@final
@dataclass(frozen=True)
class ChatClient:
    """Asks a server, each request on a connection of its own.

    Redirects are not followed, so a key reaches no other host. An https host is reached through
    the proxy that the environment names (`HTTPS_PROXY`, `NO_PROXY`), a plain http one directly.

    Attributes:
        url: base of the server's paths: `http://127.0.0.1:8000/v1`.
        api_key_env: name of the environment variable that holds the key, if one is needed. The
            key is read for every request and kept nowhere.
        concurrency: most requests at a time.
        timeout_s: longest silence of the server while it answers.
        retries: how often a request is sent again after a fault that may pass.
        backoff_s: first pause before that; each further one is twice as long, up to a minute.
    """

    url: str
    api_key_env: str
    concurrency: int
    timeout_s: float
    retries: int
    backoff_s: float

    def __post_init__(self) -> None:
        check_url(self.url)
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.api_key_env):
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
            ServerError: of the request that failed.
        """
        flight = _Flight()
        with ThreadPoolExecutor(min(self.concurrency, len(requests) or 1)) as pool:
            try:
                futures = [pool.submit(self._reply, request, flight) for request in requests]
                wait(futures, return_when=FIRST_EXCEPTION)
                if flight.error is not None:
                    raise flight.error
                return [future.result() for future in futures]
            except BaseException as error:  # an interrupt as well
                pool.shutdown(wait=False, cancel_futures=True)
                flight.end(error)
                raise

    def _reply(self, request: Mapping[str, Any], flight: _Flight) -> Reply:
        try:
            return self._ask(request, flight)
        except CancelledError:
            raise
        except BaseException as error:
            flight.end(error)  # here, since this thread would take up the next request at once
            raise

    def _ask(self, request: Mapping[str, Any], flight: _Flight) -> Reply:
        flight.sleep(0)
        body = json.dumps(request).encode()
        allowed = {"passing": self.retries, "odd": min(1, self.retries), "lasting": 0}
        seen: Counter[str] = Counter()
        while True:
            try:
                return self._attempt(body, flight)
            except _FaultError as fault:
                flight.sleep(0)  # the fault may be our own hanging up
                seen[fault.kind] += 1
                tries = f" ({seen.total()} tries)" if seen.total() > 1 else ""
                said = f"The chat server {self.url} {fault.said}{tries}."
                if seen[fault.kind] > allowed[fault.kind]:
                    raise ServerError(f"{said} {fault.advice}") from None
                doubled = 2.0 ** min(seen.total() - 1, 30)
                pause = min(self.backoff_s * doubled, LONGEST_BACKOFF_S)
                flight.warn_once("%s It is asked again.", said)
                flight.sleep(max(pause, fault.pause_s))

    def _attempt(self, body: bytes, flight: _Flight) -> Reply:
        key = self._key()
        try:
            status, retry_after, content = self._post(body, key, flight)
        except ssl.SSLCertVerificationError as error:
            raise _FaultError(
                "lasting", f"is not trusted: {error.verify_message}", _TRUST
            ) from None
        except (OSError, HTTPException) as error:
            reason = _shown(str(error) or type(error).__name__, key)
            raise _FaultError("passing", f"did not answer: {reason}", _START) from None
        shown = _shown(content.decode(errors="replace"), key)
        if not 200 <= status < 300:
            raise self._refused(status, retry_after, shown)
        try:
            return read_reply(content)
        except ValueError as error:
            raise _FaultError(
                "odd", f"answered no chat completion ({error}): {shown}", _CHAT
            ) from None

    def _refused(self, status: int, retry_after: str, shown: str) -> _FaultError:
        said = f"answered {status}: {shown}"
        if status == 429 or status >= 500:
            pause_s = seconds(retry_after)
            if pause_s <= LONGEST_RETRY_AFTER_S:
                return _FaultError("passing", said, _CROWDED, pause_s)
            return _FaultError("lasting", f"{said} (asks to wait {pause_s:.0f} s)", _CROWDED)
        if status in (401, 403):
            return _FaultError(
                "lasting", said, f"Put a key that it accepts into ${self.api_key_env}."
            )
        return _FaultError("lasting", said, _MOVED if status < 400 else _REFUSED)

    def _post(self, body: bytes, key: str, flight: _Flight) -> tuple[int, str, bytes]:
        headers = {"Content-Type": "application/json", "User-Agent": "mmemb"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        connection = make_connection(self.url, self.timeout_s, lambda: flight.trust)
        line = None
        try:
            connection.connect()
            line = connection.sock
            flight.add(line)
            line.settimeout(self.timeout_s)
            path = urlsplit(self.url).path.rstrip("/")
            connection.request("POST", f"{path}/chat/completions", body, headers)
            with connection.getresponse() as response:
                content = response.read(LARGEST_REPLY)
                if response.length:  # what is still to come; `read` alone would not complain
                    raise IncompleteRead(b"", response.length)
                return response.status, response.headers.get("Retry-After", ""), content
        finally:
            flight.remove(line)
            connection.close()

    def _key(self) -> str:
        key = os.environ.get(self.api_key_env, "").strip()
        if key.isascii() and key.isprintable() and " " not in key:
            return key
        raise ServerError(
            f"The key in ${self.api_key_env} holds blanks or letters that no key has. Set it anew."
        )


def seconds(retry_after: str) -> float:
    """How long a `Retry-After` header asks to wait: seconds or a date; 0 if it says nothing.

    >>> seconds("2"), seconds("Wed, 21 Oct 2015 07:28:00 GMT"), seconds("soon")
    (2.0, 0.0, 0.0)
    """
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", retry_after.strip(), re.ASCII):
        return float(retry_after)
    try:
        until = parsedate_to_datetime(retry_after)
    except ValueError:
        return 0.0
    return max((until.replace(tzinfo=UTC) - datetime.now(UTC)).total_seconds(), 0.0)


class _FaultError(Exception):
    """One try that failed: whether it may pass, what happened, what to do, how long to wait."""

    def __init__(
        self,
        kind: Literal["passing", "odd", "lasting"],
        said: str,
        advice: str,
        pause_s: float = 0.0,
    ) -> None:
        super().__init__(said)
        self.kind, self.said, self.advice, self.pause_s = kind, said, advice, pause_s


class _Flight:
    """What the requests of one call share: how to end them all, and one warning."""

    def __init__(self) -> None:
        self._ended, self._lock = threading.Event(), threading.Lock()
        self._lines: set[socket.socket] = set()
        self._warned = False
        self.error: BaseException | None = None

    @cached_property
    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context()

    def add(self, line: socket.socket) -> None:
        with self._lock:
            self._lines.add(line)
        self.sleep(0)

    def remove(self, line: socket.socket | None) -> None:
        with self._lock:
            self._lines.discard(line)

    def sleep(self, seconds: float) -> None:
        """Waits, unless all is over."""
        if self._ended.wait(seconds):
            raise CancelledError

    def end(self, error: BaseException) -> None:
        """Keeps the first error, wakes whoever waits, and hangs up: the server stops generating."""
        with self._lock:
            self.error = self.error or error
            self._ended.set()
            for line in self._lines:
                with suppress(OSError):  # of the socket itself: TLS would wait for an answer
                    socket.socket.shutdown(line, socket.SHUT_RDWR)

    def warn_once(self, message: str, *values: object) -> None:
        with self._lock:
            warned, self._warned = self._warned, True
        if not warned:
            _LOG.warning(message, *values)


def _shown(text: str, key: str) -> str:
    """The beginning of what a server said, on one line and without the key."""
    text = text.replace(key, "***") if key else text
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return repr(text[:SHOWN]) if text else "nothing"
