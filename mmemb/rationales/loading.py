"""Makes a worker from its saved settings; only classes of this package can be named."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import mmemb.rationales as package
from mmemb.rationales.base import RationaleWorker


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


def _is_worker(name: str) -> bool:
    return name.endswith("Worker") and name != RationaleWorker.__name__
