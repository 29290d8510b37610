"""Checks what a saved folder names: its own files, and beside them only what its caller allows.

A folder may come from anywhere. It describes its own parts; it does not decide which other files
are read, where data is sent, or which code runs (docs/trust.md).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

FOLDER = "${folder}"
"""Stands for the saved folder in its own files, so that the folder may be moved."""

RUNS = "MMEMB_RUNS"
"""The environment variable that names the folder of all runs; else it is `runs`, from here."""

HERE = frozenset({"localhost", "127.0.0.1", "::1"})
"""Names of this machine."""


Models = Collection[str] | Mapping[str, str]
"""Allowed folders and hub ids of models; a mapping says where each one that a folder names lies."""


@final
@dataclass(frozen=True, slots=True)
class Permissions:
    """Models and servers that the caller allows a folder beside its own files.

    Attributes:
        models: folders, with all that lies below them, and hub ids, each with the place where it is
            read: mostly itself.
        servers: host, or host:port -> the environment variable with the key that it is sent; None
            = no key.
        is_own: whether the folder is a run of this checkout (`is_own_run`): its configuration was
            the caller's, so it may name models anywhere, and servers on this machine.
    """

    models: Mapping[str, str] = field(default_factory=dict)
    servers: Mapping[str, str | None] = field(default_factory=dict)
    is_own: bool = False

    @classmethod
    def for_folder(
        cls,
        folder: Path,
        models: Models = (),
        servers: Mapping[str, str | None] | Collection[str] = (),
    ) -> Permissions:
        """Permissions of one folder; servers without names of variables get no key."""
        keys = servers if isinstance(servers, Mapping) else dict.fromkeys(servers)
        places = models if isinstance(models, Mapping) else {model: model for model in models}
        named = {str(name): str(place) for name, place in places.items()}
        return cls(named, keys, is_own_run(folder))

    def allows_model(self, value: str) -> bool:
        """Tells whether a model outside of the folder may be read."""
        # A place may be an id of a hub, which is compared as a name only.
        places = [Path(place) for place in self.models if Path(place).exists()]
        below = any(Path(value).resolve().is_relative_to(place.resolve()) for place in places)
        return self.is_own or value in self.models or below

    def place_of(self, value: str) -> str:
        """Returns where an allowed model is read: where the caller says, else as it is named."""
        return self.models.get(value, value)


def is_own_run(folder: Path) -> bool:
    """Tells whether a folder lies below that of all runs, and belongs to the user of this process.

    A folder that lies there counts as made here.
    """
    # Resolved: a link below the runs may lead to a folder from elsewhere.
    runs, place = Path(os.environ.get(RUNS, "runs")).resolve(), folder.resolve()

    is_below = place != runs and place.is_relative_to(runs)
    return is_below and place.is_dir() and place.stat().st_uid == os.getuid()


def in_folder(name: str) -> str:
    """The name that a saved folder gives to a file in it."""
    return f"{FOLDER}/{name}"


def is_in_folder(value: Any) -> bool:
    """Tells whether a setting names a file of its own folder."""
    return isinstance(value, str) and value.startswith(f"{FOLDER}/")


def path_in_folder(value: str, folder: Path, where: str) -> str:
    """The path behind `${folder}/NAME`.

    Args:
        value: for which `is_in_folder` holds.
        folder: the saved folder.
        where: the file and key that hold the value, for the error.

    Raises:
        ValueError: it lies outside of the folder, by `..` or by a link, or is no name of a file.
    """
    path = folder / value.removeprefix(f"{FOLDER}/")

    try:
        path.resolve().exists()
    except (OSError, ValueError):  # too long, or a byte that no name has
        raise ValueError(f"{where} names {value!r:.100}, which is no name of a file.") from None

    # Compared as resolved, so that neither `..` nor a link leads out.
    if not _is_below(path.resolve(), folder):
        raise ValueError(
            f"{where} names {value!r}, which lies outside of {folder}: a folder may name its own "
            "files only. Save it again."
        )
    return str(path)


def check_links(folder: Path) -> None:
    """Refuses links of a saved folder that lead out of it.

    Raises:
        ValueError: there is one.
    """
    for path in folder.resolve().rglob("*"):
        try:
            is_inside = not path.is_symlink() or _is_below(path.resolve(), folder)
        except (OSError, RuntimeError):  # links that point to each other
            is_inside = False

        if not is_inside:
            raise ValueError(
                f"{path} is a link to {os.readlink(path)}, outside of its folder, which no saved "
                "folder may have: put the file itself there."
            )


def _is_below(path: Path, folder: Path) -> bool:
    """Tells whether a resolved path lies in a folder.

    In the cache of huggingface_hub, `models--ORG--NAME/snapshots/COMMIT` is made of links to the
    model's own `blobs`, which count as its files.
    """
    root = folder.resolve()
    if path.is_relative_to(root):
        return True

    for parent in root.parents:
        if parent.name == "snapshots" and parent.parent.name.startswith("models--"):
            return path.is_relative_to(parent.parent / "blobs")
    return False


def check_code(settings: Any, where: str, is_own: bool = False) -> None:
    """Refuses settings that ask for code of others, wherever it stands among them.

    Args:
        settings: plain data of a folder.
        where: the file and key that hold them, for the error.
        is_own: whether it is a run of this checkout, which may name a kernel.

    Raises:
        ValueError: they set `trust_remote_code`, or name a kernel of a hub.
    """
    for key, value in walk(settings):
        # Anywhere in the settings: a part hands its arguments on to the model that it loads.
        if key == "trust_remote_code" and value:
            raise ValueError(
                f"{where}: {key} asks to run code that comes with a model, which no folder may: "
                "hand the part over yourself, made with trust_remote_code=True, if you trust it."
            )

        # An implementation with a slash is fetched from a hub and run.
        if key == "attention" and "/" in str(value) and not is_own:
            raise ValueError(
                f"{where}: {key} names {value!r}, code of a hub, which no folder may: set it to "
                "null there, or hand the part over yourself."
            )


def walk(node: Any) -> Iterator[tuple[str, Any]]:
    """All keys of nested data with their values, at any depth.

    >>> list(walk({"a": [{"b": 1}]}))
    [('a', [{'b': 1}]), ('b', 1)]
    """
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield str(key), value
            yield from walk(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from walk(value)
