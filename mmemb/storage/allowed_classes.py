"""Classes of other packages that a saved folder may name: installed ones, and the caller's own.

A folder names the classes that it is built from. Those of this project count as allowed. Any other
class is imported only if an installed package offers it as an entry point, or the caller allows it
(docs/trust.md). No file can allow a class.
"""

from __future__ import annotations

import site
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import metadata
from inspect import signature
from typing import Any, TypeVar

from mmemb.storage.spec import class_at

GROUPS = ("mmemb.backbones", "mmemb.writers", "mmemb.heads", "mmemb.judges", "mmemb.modules")
"""Groups of entry points: the kinds of classes that saved folders and runs name."""

_Function = TypeVar("_Function", bound=Callable[..., Any])

_ALLOWED: ContextVar[frozenset[str]] = ContextVar("allowed_classes", default=frozenset())


@contextmanager
def allowing_classes(paths: Collection[str]) -> Iterator[None]:
    """Allows classes in all that is loaded, or fitted, while the context is open.

    `--allow-class` and the argument `allow_classes` of loaders open it. It is no argument of what a
    configuration builds, since a file must not be able to give it.

    Args:
        paths: `package.module.Class` of each; their code runs when they are loaded.

    Raises:
        ValueError: a path is none of a class.

    >>> with allowing_classes(["mine.embedders.Words"]):
    ...     is_allowed("mine.embedders.Words"), is_allowed("mine.embedders.Other")
    (True, False)
    """
    for path in paths:
        parts = path.split(".")
        if len(parts) < 2 or not all(part.isidentifier() for part in parts):
            raise ValueError(
                f"allow_classes (--allow-class) names {path!r}, which is no path of a class: "
                "expected package.module.Class."
            )

    token = _ALLOWED.set(_ALLOWED.get() | frozenset(paths))
    try:
        yield
    finally:
        _ALLOWED.reset(token)


def allowed_classes() -> frozenset[str]:
    """Returns what the caller allows here, for an object that loads something later."""
    return _ALLOWED.get()


def is_allowed(path: str) -> bool:
    """Tells whether a folder may name a class of another package."""
    return path in _ALLOWED.get() or path in installed_classes()


@cache
def installed_classes() -> frozenset[str]:
    """Returns the classes that installed packages offer in `GROUPS`; imports none of them.

    Only metadata in the folders of installed packages count. Those elsewhere on `sys.path`, such as
    in the working folder, may have come with a download.
    """
    places = site.getsitepackages()
    if site.ENABLE_USER_SITE:
        places = [*places, site.getusersitepackages()]

    return frozenset(
        point.value.partition("[")[0].strip().replace(":", ".")
        for distribution in metadata.distributions(path=places)
        for point in _entry_points(distribution)
        if point.group in GROUPS
    )


def _entry_points(distribution: metadata.Distribution) -> Iterable[metadata.EntryPoint]:
    """Returns those of a package; none if its metadata are broken, which concerns no other one."""
    try:
        return distribution.entry_points
    except (TypeError, ValueError, OSError):  # a line without `=`, or letters that are no UTF-8
        return ()


def check_allowed(path: str, problem: str, group: str, alternative: str = "") -> None:
    """Refuses a class of another package that is not allowed.

    Args:
        path: its class path.
        problem: first half of the error, which says what names the class.
        group: of `GROUPS`, where its package should list it.
        alternative: another way to allow it.

    Raises:
        ValueError: it is not allowed; the second half of the error says how to allow it.
    """
    if is_allowed(path):
        return

    home, _, name = path.rpartition(".")
    if home == "__main__" or "<locals>" in path:
        raise ValueError(
            f"{problem}, which is defined in a script, a notebook or a function, where no other "
            "process finds it: move the class to the top of a module of its own."
        )
    raise ValueError(
        f"{problem}, which belongs to another package: if you trust that code, allow it by "
        f"allow_classes=[{path!r}] (--allow-class {path}){alternative}, or install its package "
        f'with the entry point {name} = "{home}:{name}" in the group {group} (docs/extend.md).'
    )


def allowed_class(path: str, where: str, group: str, alternative: str = "") -> type:
    """Imports a class of another package, if it is allowed.

    Args:
        path: its class path.
        where: the file and key that name it, for the error.
        group: see `check_allowed`.
        alternative: see `check_allowed`.

    Raises:
        ValueError: it is not allowed, or there is none.
    """
    check_allowed(path, f"{where} names {path!r}", group, alternative)

    kind = class_at(path)
    if kind is None:
        raise ValueError(
            f"{where} names {path!r}, which is allowed, but cannot be imported: install its "
            "package, or make it visible to Python."
        )
    return kind


def hide_from_parsers(function: _Function) -> _Function:
    """Hides `allow_classes` from parsers of configurations, which read the signature.

    >>> @hide_from_parsers
    ... def load(folder: str, allow_classes: Collection[str] = ()) -> None: ...
    >>> list(signature(load).parameters)
    ['folder']
    """
    whole = signature(function)
    kept = [part for name, part in whole.parameters.items() if name != "allow_classes"]
    function.__signature__ = whole.replace(parameters=kept)  # type: ignore[attr-defined]
    return function
