"""The address of a chat server, and one exchange with it, bounded in time and in bytes.

It does not depend on the content of requests and replies.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, final
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

if TYPE_CHECKING:
    import httpx2

LONGEST_CONNECT_S = 10.0
"""Most seconds to connect; a reply may take longer."""

LARGEST_REPLY = 16 * 2**20
LARGEST_REFUSAL = 2**16
"""Bytes of a body: one that is to be read as an answer, and one that is only shown."""


@final
@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of a server: the status, the header `Retry-After`, and the body."""

    status: int
    retry_after: str
    content: bytes


def open_transport(url: str) -> httpx2.AsyncHTTPTransport:
    """Opens a transport of requests, each on a connection of its own.

    It is httpx2's transport without its client: so there are neither redirects nor cookies nor
    `.netrc` nor unpacking of bodies, and nothing of these needs to be switched off.

    An https host is reached through the proxy that the environment names (`HTTPS_PROXY`,
    `NO_PROXY`), which sees nothing but the host's name; a plain http one, and this machine itself,
    directly.

    Args:
        url: base of the server; `check_url` accepted it.

    Raises:
        ValueError: the environment names a proxy of another kind than http.
    """
    import httpx2

    parts = urlsplit(url)

    # Reading the certificates of all authorities takes a while, and plain http needs none.
    secure = parts.scheme == "https"
    trust = ssl.create_default_context() if secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    return httpx2.AsyncHTTPTransport(
        verify=trust,
        trust_env=False,
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0),
        proxy=_proxy_of(parts.hostname or "", trust) if secure else None,
    )


async def exchange(
    transport: httpx2.AsyncHTTPTransport,
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    timeout_s: float,
) -> Answer:
    """Sends one request and reads its answer.

    Args:
        transport: see `open_transport`.
        url: the request goes to `chat/completions` below it.
        body: JSON.
        headers: further headers.
        timeout_s: longest time of all together: from connecting to the last byte.

    Raises:
        ConnectionError: no whole answer came; the message says why in a few words.
        ssl.SSLCertVerificationError: the server is not the one that it says it is.
        ValueError: an answer that is too large, or packed although the request excluded it.
    """
    import anyio
    import httpx2

    # So that TCP and TLS together end before the one clock does: httpcore2 2.16 closes the socket
    # of a handshake that is late by its own timeout, and not of one that is cancelled.
    patience = min(timeout_s / 3, LONGEST_CONNECT_S)
    limits = httpx2.Timeout(None, connect=patience).as_dict()

    plain = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
    try:
        # One clock around everything: a timeout of a single read starts again with every byte that
        # a server drips, with every header and with every "100 Continue".
        with anyio.fail_after(timeout_s):
            request = httpx2.Request(
                "POST",
                _endpoint(url),
                headers={"User-Agent": "mmemb", **plain, **headers},
                content=body,
                extensions={"timeout": limits},
            )

            response = await transport.handle_async_request(request)
            async with aclosing(response):
                content = await _body(response)
                return Answer(
                    response.status_code, response.headers.get("Retry-After", ""), content
                )
    except TimeoutError:
        raise ConnectionError(f"no whole reply within {timeout_s:g} s") from None
    except httpx2.ConnectTimeout:
        raise ConnectionError(f"no connection within {patience:.3g} s") from None
    except httpx2.ProxyError as error:
        raise ConnectionError(f"its proxy said {error}") from None
    except httpx2.TransportError as error:
        cause = _first_cause(error)
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise cause from None
        raise ConnectionError(_reason(cause) or str(error) or type(error).__name__) from None


async def _body(response: httpx2.Response) -> bytes:
    """The bytes as they were sent; of a refusal no more than the beginning.

    Raises:
        ValueError: an answer that is too large or packed.
    """
    import httpx2

    assert isinstance(response.stream, httpx2.AsyncByteStream)
    good = response.is_success
    packing = response.headers.get("Content-Encoding", "").strip().lower()
    # Nothing here unpacks bodies: a few packed bytes may hold any number of plain ones.
    if good and packing not in ("", "identity"):
        raise ValueError("it is packed, though plain text was asked for")

    # A refusal is only shown, so its beginning is enough; an answer that is too long is an error.
    content, most = bytearray(), LARGEST_REPLY if good else LARGEST_REFUSAL
    async for piece in response.stream:
        content += piece
        if len(content) > most:
            if good:
                raise ValueError(f"it has more than {most >> 20} MiB")
            break

    return bytes(content[:most])


def check_url(url: str) -> None:
    """Rejects what is no base of a server, and what would carry a secret into files."""
    try:
        parts = urlsplit(url)
        bare = not (parts.username or parts.password or parts.query or parts.fragment)
        plain = url.isascii() and url.isprintable() and " " not in url
        if parts.scheme in ("http", "https") and parts.hostname and bare and plain:
            _ = parts.port  # complains about one that is no number
            return
    except ValueError:
        pass
    raise ValueError(  # without the value, which may hold a password
        "The url of a chat server is its base, such as http://127.0.0.1:8000/v1: http or https, a "
        "host, maybe a port and a path; no user, password, question mark or #."
    )


def _endpoint(url: str) -> httpx2.URL:
    """Returns the URL of chat completions, from the parts that `check_url` checked.

    A second parser may find another host in the same text.
    """
    import httpx2

    parts = urlsplit(url)
    path = f"{parts.path.rstrip('/')}/chat/completions"
    try:
        return httpx2.URL(scheme=parts.scheme, host=parts.hostname, port=parts.port, path=path)
    except httpx2.InvalidURL as error:
        raise ConnectionError(f"its url is none: {error}") from None


def _proxy_of(host: str, trust: ssl.SSLContext) -> httpx2.Proxy | None:
    import httpx2

    proxy_url = getproxies().get("https", "")
    if not proxy_url or _is_here(host) or proxy_bypass(host):
        return None

    # curl and others take HOST:PORT without a scheme, and so may the variable.
    proxy_url = proxy_url if "://" in proxy_url else f"http://{proxy_url}"
    try:
        _ = urlsplit(proxy_url).port  # complains about one that is too large, httpx2 does not
        proxy = httpx2.Proxy(proxy_url)
    except (ValueError, httpx2.InvalidURL):
        proxy = None

    if proxy is None or proxy.url.scheme not in ("http", "https") or not proxy.url.host:
        raise ValueError(  # without the value, which may hold a password
            "HTTPS_PROXY names no proxy that can be used: expected http://HOST:PORT. Set it anew, "
            "or name the chat server's host in NO_PROXY."
        )

    # A proxy reached by TLS is checked against the same authorities as the server.
    if proxy.url.scheme == "https":
        proxy.ssl_context = trust
    return proxy


def _is_here(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _reason(cause: BaseException) -> str:
    """The reason that the system, the resolver or TLS gives; "" if it was none of them."""
    if isinstance(cause, ssl.SSLError | socket.gaierror):  # numbers of their own
        return cause.strerror or ""
    if isinstance(cause, OSError) and cause.errno:
        return os.strerror(cause.errno)
    return ""


def _first_cause(error: BaseException) -> BaseException:
    """The error of the socket, below those of the layers above it."""
    while True:
        inner = error.__cause__ or error.__context__
        if isinstance(error, BaseExceptionGroup):  # one for each address of the host
            inner = error.exceptions[0]
        if inner is None:
            return error
        error = inner
