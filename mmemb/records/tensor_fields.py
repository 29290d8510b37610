"""One function over the tensors of a frozen record, so that Lightning can move it to a device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import TypeVar

from torch import Tensor

_Record = TypeVar("_Record")


def map_tensors(record: _Record, function: Callable[[Tensor], Tensor]) -> _Record:
    """Returns a copy of a dataclass in which every tensor is replaced by `function` of it."""
    # Fields of other types stay as they are, nested records among them.
    changed = {
        f.name: function(value)
        for f in fields(record)  # type: ignore[arg-type]
        if isinstance(value := getattr(record, f.name), Tensor)
    }
    return replace(record, **changed)  # type: ignore[type-var]
