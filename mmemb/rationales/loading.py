"""Makes a worker from its saved settings; only classes of this package can be named."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import mmemb.rationales as package
from mmemb.rationales.base import RationaleWorker

_HERE = frozenset({"localhost", "127.0.0.1", "::1"})


def load_worker(settings: Mapping[str, Any]) -> RationaleWorker:
    """The inverse of `RationaleWorker.settings`.

    Settings come out of a downloaded folder, so they may name no class but our own workers.

    Args:
        settings: `class_path` (`mmemb.rationales.TableWorker`) and `init_args`.
    """
    path, room = str(settings.get("class_path", "")), package.__name__
    home, _, name = path.rpartition(".")
    kind = getattr(package, name) if home == room and name in package.__all__ else None
    if kind is None or not _is_worker(name):
        raise ValueError(
            f"class_path {path!r} names no rationale worker. Expected {room}.NAME with NAME from "
            f"{sorted(set(filter(_is_worker, package.__all__)))}."
        )
    arguments = dict(settings.get("init_args", {}))
    known = set(inspect.signature(kind).parameters)
    if unknown := sorted(set(arguments) - known):
        raise ValueError(
            f"init_args of {path}: unknown key(s) {unknown}; known are {sorted(known)}."
        )
    return kind(**arguments)


def load_saved_worker(
    settings: Mapping[str, Any], servers: Collection[str] = ()
) -> RationaleWorker:
    """`load_worker` for settings of a folder that may come from anywhere.

    Args:
        settings: see `load_worker`.
        servers: names of hosts that may be asked, and be sent the key of the environment; one on
            this machine may always be.

    Raises:
        ValueError: the settings ask for code that comes with a model, or for another server.
    """
    for key, value in _walk(settings):
        if key == "trust_remote_code" and value:
            raise ValueError(
                "the settings of a saved worker ask to run code that comes with a model, which a "
                "folder may not: hand the worker over (`workers={...}`) if you trust that code."
            )
        host = urlsplit(str(value)).hostname if key == "url" else None
        if host is not None and host not in {*_HERE, *servers}:
            raise ValueError(
                f"the saved worker would ask the server {host}, and send it queries and a key of "
                f"the environment: allow it by servers=[{host!r}] (--server {host}), or hand over "
                "a worker of your own (`workers={...}`)."
            )
    return load_worker(settings)


def _walk(node: Any) -> Iterator[tuple[str, Any]]:
    """All keys with their values, at any depth."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield str(key), value
            yield from _walk(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _walk(value)


def _is_worker(name: str) -> bool:
    return name.endswith("Worker") and name != RationaleWorker.__name__
