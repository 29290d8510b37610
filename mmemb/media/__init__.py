"""Pictures and clips from files, bytes, arrays and images: 8-bit RGB, bounded in size.

Importing this package is cheap: its functions are loaded when they are first used.
"""

from __future__ import annotations

from mmemb.faces import lazy_names

_HOMES = {"clip": "inputs", "picture": "inputs", "side": "inputs", "sides": "inputs"}

__all__ = sorted(_HOMES)
__getattr__ = lazy_names(__name__, _HOMES)
