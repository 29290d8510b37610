"""The model that a run's `config.yaml` describes, checked before anything is built from it.

A run may come from anywhere. Its configuration names classes, which would be imported: only those
of this project are, beside what the caller allows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from mmemb.rationales.writers.loading import allowed_key
from mmemb.storage.allowed_classes import allowed_class
from mmemb.storage.run_folder import RunFolder
from mmemb.storage.trust import Permissions, check_code

PACKAGES = ("lightning_modules", "mmemb", "torch.optim")
"""Packages whose classes a recorded configuration may name."""

_FUNCTIONS = {"load_backbone": ("folder",)}
"""Functions that stand where a class may stand -> their arguments that name a model."""

_ARGUMENTS = ("init_args", "dict_kwargs")

_PLAIN = (str, int, float, bool, type(None), Path)


def check_recorded(
    settings: Mapping[str, Any],
    folder: Path,
    permissions: Permissions,
    packages: Collection[str] = (),
    trust_remote_code: bool = False,
) -> None:
    """Refuses what a run's configuration may not ask for.

    Args:
        settings: the key `model` of the configuration; the caller's word for the key of a server
            is put into it.
        folder: the run.
        permissions: models and servers outside of it.
        packages: whose classes may be named, beside `PACKAGES`.
        trust_remote_code: whether code that comes with a model may run.

    Raises:
        ValueError: it names a class of another package, a model or server that is not allowed, or
            asks for code that comes with a model.
    """

    where = str(RunFolder(folder).config)
    if not trust_remote_code:
        check_code(settings, where, permissions.is_own)

    texts: set[str] = set()
    for key, node in _named(settings, "model"):
        if isinstance(node, str):
            if key not in texts and _would_be_imported(node):
                _object(node, f"{where}: {key}", packages)
            continue

        kind = _object(str(node["class_path"]), f"{where}: {key}.class_path", packages)

        arguments: dict[str, Any] = {}
        for part in _ARGUMENTS:
            if not isinstance(values := node.get(part) or {}, Mapping):
                raise ValueError(f"{where}: {key}.{part} is no table: expected names and values.")
            arguments |= values

            # A run from elsewhere must not choose which variable of the environment a server gets.
            if "url" in values:
                key_of_server = allowed_key(values, permissions, f"{where}: {key}.{part}")
                values["api_key_env"] = key_of_server

        texts |= {f"{key}.init_args.{name}" for name in _text_arguments(kind)}
        for name, words in _places(kind).items():
            for value in sorted(set(_strings(arguments.get(name))) - set(words)):
                _check_place(value, folder, permissions, f"{where}: {key}.init_args.{name}")


def _named(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Yields everything that may name a class: tables with a `class_path`, and texts."""
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
    """Tells whether jsonargparse could take a text for a class; no package is imported for it."""
    first, *rest = text.split(".")
    if not rest or not all(name.isidentifier() for name in (first, *rest)):
        return False

    try:
        return find_spec(first) is not None
    except ValueError:  # a module without a specification, such as `__main__`
        return True


def _text_arguments(kind: Any) -> list[str]:
    """Returns arguments in which a text is never a class, such as the name of a file."""
    try:
        hints = get_type_hints(kind.__init__ if isinstance(kind, type) else kind)
    except (NameError, TypeError, AttributeError):  # of a user's own class
        return []
    return [name for name, hint in hints.items() if hint in _PLAIN or _is_union_of_plain(hint)]


def _is_union_of_plain(hint: Any) -> bool:
    parts = get_args(hint)
    return get_origin(hint) in (Union, UnionType) and all(part in _PLAIN for part in parts)


def _object(path: str, where: str, packages: Collection[str]) -> Any:
    """Returns the class behind a class path, if it or the package that defines it is allowed."""
    home, _, name = path.rpartition(".")
    allowed_packages = (*PACKAGES, *packages)
    if not _is_below(home, allowed_packages):
        more = f", or all of its package by packages=[{path.partition('.')[0]!r}]"
        return allowed_class(path, where, "mmemb.modules", more)

    try:
        target = getattr(import_module(home), name)
    except (ImportError, AttributeError):
        raise ValueError(f"{where}: there is no {path!r} in this version.") from None

    # The name alone proves nothing: an allowed module also has what it imported from others.
    is_named = isinstance(target, type) or name in _FUNCTIONS or _is_below(home, packages)
    if not is_named or not _is_below(str(getattr(target, "__module__", "")), allowed_packages):
        raise ValueError(
            f"{where} names {path!r}, which is no class of {', '.join(allowed_packages)}."
        )
    return target


def _is_below(module: str, packages: Collection[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in packages)


def _places(kind: Any) -> dict[str, Collection[str]]:
    """Returns arguments that name the place of a model or file, with words that are no place."""
    names = (
        *_FUNCTIONS.get(kind.__name__, ()),
        *getattr(kind, "file_arguments", ()),
        *getattr(kind, "model_arguments", ()),
    )
    return dict.fromkeys(names, ()) | dict(getattr(kind, "sources", {}))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        yield from (text for inner in value.values() for text in _strings(inner))
    elif isinstance(value, list | tuple):
        yield from (text for inner in value for text in _strings(inner))
    elif isinstance(value, str | Path):
        yield str(value)


def _check_place(value: str, folder: Path, permissions: Permissions, where: str) -> None:
    is_inside = Path(value).resolve().is_relative_to(folder.resolve())
    if not is_inside and not permissions.allows_model(value):
        raise ValueError(
            f"{where} names {value!r}, which is not in {folder}: allow it by models=[{value!r}] "
            f"(--allow-model {value}). A run of yours below $MMEMB_RUNS, else runs, needs no leave."
        )
