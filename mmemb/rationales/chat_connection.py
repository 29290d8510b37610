"""Where a chat server is, and a connection to it. Knows nothing of what is said over it."""

from __future__ import annotations

import ipaddress
import ssl
from base64 import b64encode
from collections.abc import Callable
from http.client import HTTPConnection, HTTPSConnection
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

LONGEST_CONNECT_S = 10.0
"""Whoever has not picked up by then is not there, however long its answers may take."""


def make_connection(
    url: str, timeout_s: float, trust: Callable[[], ssl.SSLContext]
) -> HTTPConnection:
    """A connection that is not opened yet.

    An https host is reached through the proxy that the environment names (`HTTPS_PROXY`,
    `NO_PROXY`), which sees nothing but the host's name; a plain http one, and this machine itself,
    directly.

    Args:
        url: of the server; `check_url` accepted it.
        timeout_s: longest time to connect; no more than ten seconds in any case.
        trust: whose certificates count; asked for https only, since reading them takes a while.
    """
    parts = urlsplit(url)
    host, patience = parts.hostname or "", min(timeout_s, LONGEST_CONNECT_S)
    if parts.scheme == "http":
        return HTTPConnection(host, parts.port, timeout=patience)
    proxy = _proxy_of(host)
    if proxy is None:
        return HTTPSConnection(host, parts.port, timeout=patience, context=trust())
    through = HTTPSConnection(
        proxy.hostname or "", proxy.port or 80, timeout=patience, context=trust()
    )
    user = f"{unquote(proxy.username or '')}:{unquote(proxy.password or '')}"
    login = {"Proxy-Authorization": f"Basic {b64encode(user.encode()).decode()}"}
    through.set_tunnel(host, parts.port or 443, login if proxy.username else {})
    return through


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


def _proxy_of(host: str) -> SplitResult | None:
    proxy = getproxies().get("https", "")
    if not proxy or _is_here(host) or proxy_bypass(host):
        return None
    return urlsplit(proxy if "://" in proxy else f"//{proxy}")


def _is_here(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
