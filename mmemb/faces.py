"""Names of a package that are imported when they are first asked for.

Importing a package stays cheap: a class brings its libraries along only when it is named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Returns the `__getattr__` of a package.

    Args:
        package: `__name__` of the package.
        homes: public name -> the module in the package that defines it.

    >>> lazy_names("mmemb.backbones", {"JointEncoder": "joint"})("Unknown")
    Traceback (most recent call last):
    AttributeError: module 'mmemb.backbones' has no attribute 'Unknown'
    """

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    return find
