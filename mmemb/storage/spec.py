"""Objects as JSON, `{class_path, init_args}`, and the one way back.

A folder may come from anywhere. So its reader states which classes it may name, and checks what
their arguments name, before anything is imported or built for it (docs/trust.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from inspect import signature
from typing import Any, final

from mmemb.records.schema import Schema
from mmemb.records.text import quote

ClassOf = Callable[[str], type]
"""Class path -> the class, if it may be named; else a ValueError."""


@final
class Spec(Schema):
    """A class and the arguments of its constructor, some of which may be specs themselves."""

    class_path: str
    init_args: dict[str, Any] = {}


def is_spec(value: Any) -> bool:
    """Tells an object, which is made first, from a plain argument.

    >>> is_spec({"class_path": "mmemb.backbones.JointEncoder"}), is_spec({"rank": 8})
    (True, False)
    """
    return isinstance(value, Mapping) and "class_path" in value


def arguments_of(thing: object, **others: Any) -> dict[str, Any]:
    """Returns the arguments of an object's constructor, from attributes of the same names.

    Args:
        thing: the object.
        **others: values of arguments that it holds under another name or in another form.
    """
    names = signature(type(thing)).parameters
    return {name: others[name] if name in others else getattr(thing, name) for name in names}


def class_path(thing: object) -> str:
    """Returns the class of an object as files name it."""
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def class_paths(spec: Mapping[str, Any]) -> Iterator[str]:
    """Yields the class path of a spec, and those of the specs in its arguments.

    >>> list(class_paths({"class_path": "a.B", "init_args": {"c": {"class_path": "d.E"}, "f": 1}}))
    ['a.B', 'd.E']
    """
    yield str(spec["class_path"])
    for value in (spec.get("init_args") or {}).values():
        if is_spec(value):
            yield from class_paths(value)


def class_at(path: str) -> type | None:
    """Imports the class behind a path: only for a path that may be imported.

    Returns:
        The class; None if there is none.

    >>> class_at("pathlib.Path").__name__, class_at("pathlib.Nothing"), class_at("nowhere.Path")
    ('Path', None, None)
    """
    home, _, name = path.rpartition(".")
    try:
        kind = getattr(import_module(home), name, None)
    except (ImportError, ValueError):  # no such module, or no name of one
        return None
    return kind if isinstance(kind, type) else None


def build(spec: Mapping[str, Any], class_of: ClassOf, where: str = "") -> Any:
    """Makes the object of a checked spec, after those in its arguments.

    Args:
        spec: `class_path` and `init_args`.
        class_of: see `ClassOf`; asked for the spec and for each one in its arguments.
        where: names the file, for the error.

    Raises:
        ValueError: a class may not be named, or does not take its arguments.
    """
    path = str(spec["class_path"])
    kind = class_of(path)

    # The class comes first: no argument is built for one that is refused.
    arguments = {
        key: build(value, class_of, where) if is_spec(value) else value
        for key, value in (spec.get("init_args") or {}).items()
    }

    try:
        return kind(**arguments)
    except (TypeError, AttributeError) as error:  # one is missing, unknown, or of another kind
        raise ValueError(f"{where}{': ' * bool(where)}{path}: {quote(error)}") from None
