"""Refuses other modules with the names of the rooms, which Python would import instead."""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path

ROOMS = ("mmemb", "datamodules", "lightning_modules", "callbacks", "experiments")
"""The packages that belong together; all of them lie in one folder."""

HOME = Path(__file__).resolve().parents[1]
"""The folder that holds them."""

SAFE_PATH = "PYTHONSAFEPATH"
"""Variable of Python: `python -m` does not look for modules in the working folder."""

_ADVICE = "Rename it, or start the command in another folder."


def check_rooms() -> None:
    """Refuses other modules in place of the rooms, as `python -m` finds in the working folder.

    Raises:
        ImportError: there is one.
    """
    for name in ROOMS:
        spec = find_spec(name)
        folders = [] if spec is None else list(spec.submodule_search_locations or ())

        if HOME / name not in [Path(folder).resolve() for folder in folders]:
            other = spec and (spec.origin or folders[0])
            raise ImportError(
                f"{name} is a package of mmemb-r1, but Python finds {other}. {_ADVICE}"
            )


def check_folder(folder: Path) -> None:
    """Refuses a folder with modules that are named as one of the rooms.

    A plain folder without `__init__.py` never takes the place of an installed package, but it does
    so of an editable installation, whose packages Python finds last.

    Raises:
        ValueError: there is one.
    """
    is_editable = HOME not in [Path(place).resolve() for place in sys.path]
    for name in ROOMS:
        spec = PathFinder.find_spec(name, [str(folder)])
        if spec is None or (spec.origin is None and not is_editable):
            continue

        if (folder / name).resolve() != HOME / name:
            shown = folder / name if spec.submodule_search_locations else spec.origin
            raise ValueError(
                f"{shown} has the name of {name}, a package of mmemb-r1, so that processes of this "
                f"command could take one for the other. {_ADVICE}"
            )
