"""The name that was meant, most likely, by one that does not exist: a hint for error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, names: Iterable[str]) -> str:
    """Returns a hint for an error message: ` Did you mean x?`, or an empty text.

    >>> nearest("temprature", ["temperature", "optimizer"])
    ' Did you mean temperature?'
    """
    close = difflib.get_close_matches(str(name), list(names), n=1)
    return f" Did you mean {close[0]}?" if close else ""
