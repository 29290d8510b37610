"""A program of its own, which draws an SVG from the standard input to the standard output as PNG.

The drawing library ends its process where a drawing asks for too much memory, and opens files that
a drawing names. Here it has bounds, and can open nothing.
"""

from __future__ import annotations

import resource
import sys
from contextlib import suppress

REFUSED = 2
"""Exit status if the library says what is wrong."""

_BYTES = 2**30

_BOUNDS = {
    resource.RLIMIT_CPU: 20,
    resource.RLIMIT_CORE: 0,
    resource.RLIMIT_NOFILE: 3,
}
"""Seconds, and the three open streams: neither file nor socket can be opened beside them."""


def main() -> int:
    """Draws; the argument is the longer side in pixels. Returns the status."""
    import resvg_py

    side = int(sys.argv[1])
    text = sys.stdin.buffer.read().decode()
    for bound, most in _BOUNDS.items():
        _bound(bound, most)
    with suppress(ValueError):  # macOS bounds no memory
        _bound(resource.RLIMIT_AS, _BYTES)

    try:
        png = resvg_py.svg_to_bytes(
            svg_string=text, width=side, height=side, skip_system_fonts=True
        )
    except ValueError as error:
        sys.stderr.write(str(error))
        return REFUSED

    sys.stdout.buffer.write(bytes(png))
    return 0


def _bound(bound: int, most: int) -> None:
    # The user's own bound may be lower, and cannot be raised.
    allowed = resource.getrlimit(bound)[1]
    most = most if allowed == resource.RLIM_INFINITY else min(most, allowed)
    resource.setrlimit(bound, (most, most))


if __name__ == "__main__":
    sys.exit(main())
