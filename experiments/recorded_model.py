"""The model that a run's `config.yaml` describes, checked before anything is built from it.

A run may come from anywhere. Its configuration names classes, which would be imported: only those
of this project are, beside what the caller allows.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmemb.rationales.loading import allowed_key
from mmemb.trust import Allowed, check_code

PACKAGES = ("lightning_modules", "mmemb", "torch.optim")
"""Whose classes a recorded configuration may name."""

_FUNCTIONS = {"load_backbone": ("folder",)}
"""Functions that stand where a class may stand -> their arguments that name a model."""

_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


def check_recorded(
    settings: Mapping[str, Any],
    folder: Path,
    allowed: Allowed,
    packages: Collection[str] = (),
    trust_remote_code: bool = False,
) -> None:
    """Refuses what a run's configuration may not ask for.

    Args:
        settings: the key `model` of the configuration.
        folder: the run.
        allowed: models and servers outside of it.
        packages: whose classes may be named, beside `PACKAGES`.
        trust_remote_code: whether code that comes with a model may run.

    Raises:
        ValueError: it names a class of another package, a model or server that is not allowed, or
            asks for code that comes with a model.
    """
    where = f"{folder}/config.yaml"
    if not trust_remote_code:
        check_code(settings, where, allowed.own)

    for key, node in _named(settings, "model"):
        if isinstance(node, str):
            if _would_be_imported(node):
                _object(node, f"{where}: {key}", packages)
            continue
        kind = _object(str(node["class_path"]), f"{where}: {key}.class_path", packages)
        arguments = node.get("init_args") or {}
        for name, words in _places(kind).items():
            for value in sorted(set(_strings(arguments.get(name))) - set(words)):
                _check_place(value, folder, allowed, f"{where}: {key}.init_args.{name}")
        if "url" in arguments:
            allowed_key(arguments, allowed, f"{where}: {key}")


def _named(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Everything that may name a class: tables with a `class_path`, and texts."""
    if isinstance(node, Mapping):
        if "class_path" in node:
            yield key, node
        for name, value in node.items():
            if name != "class_path":
                yield from _named(value, f"{key}.{name}")
    elif isinstance(node, list | tuple):
        for number, value in enumerate(node):
            yield from _named(value, f"{key}.{number}")
    elif isinstance(node, str):
        yield key, node


def _would_be_imported(text: str) -> bool:
    """Whether jsonargparse could take a text for a class; finding a package runs none of it."""
    if not _DOTTED.fullmatch(text) or Path(text).exists():
        return False
    try:
        return find_spec(text.partition(".")[0]) is not None
    except ValueError:  # a module without a specification, such as `__main__`
        return True


def _object(path: str, where: str, packages: Collection[str]) -> Any:
    """What a class path names, if it is defined in a package that is allowed."""
    home, _, name = path.rpartition(".")
    known = (*PACKAGES, *packages)
    if not _is_below(home, known):
        raise ValueError(
            f"{where} names {path!r}, and a run may only name classes of {', '.join(known)}: if "
            f"you trust that code, allow it by packages=[{path.partition('.')[0]!r}]."
        )
    try:
        found = getattr(import_module(home), name)
    except (ImportError, AttributeError):
        raise ValueError(f"{where}: there is no {path!r} in this version.") from None

    is_named = isinstance(found, type) or name in _FUNCTIONS or _is_below(home, packages)
    if not is_named or not _is_below(str(getattr(found, "__module__", "")), known):
        raise ValueError(f"{where} names {path!r}, which is no class of {', '.join(known)}.")
    return found


def _is_below(module: str, packages: Collection[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in packages)


def _places(kind: Any) -> dict[str, Collection[str]]:
    """Arguments that say where a model or a file is read, with the words that are no place."""
    names = (
        *_FUNCTIONS.get(kind.__name__, ()),
        *getattr(kind, "file_arguments", ()),
        *getattr(kind, "model_arguments", ()),
    )
    return dict.fromkeys(names, ()) | dict(getattr(kind, "sources", {}))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        yield from (text for inner in value.values() for text in _strings(inner))
    elif isinstance(value, str):
        yield value


def _check_place(value: str, folder: Path, allowed: Allowed, where: str) -> None:
    is_inside = Path(value).resolve().is_relative_to(folder.resolve())
    if not is_inside and not allowed.model(value):
        raise ValueError(
            f"{where} names {value!r}, which is not in {folder}: allow it by models=[{value!r}] "
            f"(--allow-model {value}). A run of yours below $MMEMB_RUNS, else runs, needs no leave."
        )
