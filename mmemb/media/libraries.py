"""Libraries of the extra `media`, which load with the function that needs them."""

from __future__ import annotations

from importlib.util import find_spec

_PACKAGES = {"PIL": "Pillow", "av": "av", "resvg_py": "resvg-py"}
"""Module -> the package that brings it."""


def require_library(module: str, purpose: str) -> None:
    """Refuses a library that is not installed, in one sentence, before it is imported.

    Args:
        module: of the extra `media`.
        purpose: what needs it.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    if find_spec(module) is None:
        package = _PACKAGES[module]
        raise ModuleNotFoundError(
            f"{purpose} needs {package}: pip install 'mmemb-r1[media]'", name=module
        )
