"""JSON as files and as a canonical text, without NaN and infinity."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from mmemb.storage.files import write_atomically


def canonical_json(data: Any) -> str:
    """JSON text that is equal for equal data.

    >>> canonical_json({"b": 1, "a": (2,)})
    '{"a":[2],"b":1}'
    """
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)


def write_json(path: Path, data: Any) -> None:
    """Writes pretty JSON whole or not at all; a number that is not finite becomes null."""
    text = json.dumps(finite(data), indent=2, ensure_ascii=False, allow_nan=False, default=str)
    write_atomically(path, f"{text}\n".encode())


def finite(data: Any) -> Any:
    """JSON data with null for every NaN and infinity, which JSON cannot hold.

    >>> finite({"a": [1.0, float("nan")], "b": (float("inf"),)})
    {'a': [1.0, None], 'b': [None]}
    """
    if isinstance(data, Mapping):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not isfinite(data) else data
