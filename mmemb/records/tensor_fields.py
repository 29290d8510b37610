"""Movable: a frozen record that Lightning can move to a device, tensor by tensor."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, Self

from torch import Tensor


class Movable(ABC):  # noqa: B024  (it is a base, not a seam)
    """Base of frozen dataclasses: Lightning refuses such a record if it has no `to`."""

    __slots__ = ()

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Moves the tensors; all other fields stay on the host."""
        return self.map_tensors(lambda x: x.to(*args, **kwargs))

    def pin_memory(self) -> Self:
        """Called by a DataLoader that pins memory."""
        return self.map_tensors(lambda x: x.pin_memory())

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Returns a copy in which every tensor is replaced by `function` of it."""
        # Fields of other types stay as they are, nested records among them.
        changed = {
            f.name: function(value)
            for f in fields(self)  # type: ignore[arg-type]
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return replace(self, **changed)  # type: ignore[type-var]
