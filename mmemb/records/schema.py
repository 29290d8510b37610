"""JSON from anywhere as typed values: one check of types, ranges and keys for every reader."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, TypeVar, final, get_type_hints

import msgspec
from msgspec import Meta

from mmemb.records.old_names import with_new_fields
from mmemb.records.text import quote

_Value = TypeVar("_Value")

Count = Annotated[int, Meta(ge=0)]
"""A whole number from 0."""

Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
"""A hash in hexadecimal digits."""

_STEP = re.compile(r"\.(\w+)|\[(\d+|\.\.\.)\]")
"""One step of a path in a message of msgspec, such as `.fact`, `[3]` or `[...]`."""

AGAIN = "Delete it and run the step that makes it again."
"""Advice about a file that this project writes."""


@final
class SchemaError(ValueError):
    """JSON that is none, or is not what its reader expects.

    Attributes:
        problem: names file, key and field and what was expected; the message adds what to do.
    """

    def __init__(self, problem: str, advice: str = "") -> None:
        super().__init__(f"{problem} {advice}".strip())
        self.problem = problem


class Schema(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of the records that describe a JSON object; a key that is no field is an error."""


class Excerpt(msgspec.Struct, frozen=True):
    """Base of the records of files that hold more than is read of them, or that others write: a
    key that is no field is passed over."""


def to_json(record: Schema) -> dict[str, Any]:
    """A record (Rationale, EvaluationTask, ...) as JSON data."""
    return msgspec.to_builtins(record)


def parse_json(data: bytes | str, kind: type[_Value], where: str, advice: str = "") -> _Value:
    """JSON data as a value of a type.

    Args:
        data: UTF-8 or text.
        kind: what is expected: a `Schema`, a dataclass, or any type that msgspec reads, such as
            `list[str]`; ranges are stated by `Annotated[int, msgspec.Meta(ge=0)]`.
        where: names the file, and the sample or row in it.
        advice: what to do, a sentence for the end of the message.

    Raises:
        SchemaError: no JSON, half of a surrogate pair in a text, a field that is missing, unknown,
            of another type or out of range.

    >>> parse_json(b'{"a": [1, "x"]}', dict[str, list[int]], "File f.json")
    Traceback (most recent call last):
    ...
    mmemb.records.schema.SchemaError: File f.json: Expected `int`, got `str` - at `$['a'][1]`.
    """
    # Editors of Windows put a mark in front, which is no part of the JSON.
    mark: Any = "\ufeff" if isinstance(data, str) else codecs.BOM_UTF8
    data = data.removeprefix(mark)

    try:
        return _decoder(kind).decode(data)
    except (msgspec.DecodeError, UnicodeError) as error:
        # A file of an older version has other names, and is read in a second pass.
        if isinstance(error, msgspec.ValidationError) and (renamed := _with_new_fields(data)):
            return convert(renamed, kind, where, advice)

        # A record's own check may be a sentence.
        reason = _reason(data, error, kind).removesuffix(".")
        raise SchemaError(f"{where}: {reason}.", advice) from None
    except RecursionError:
        raise SchemaError(f"{where}: the JSON is nested too deeply.", advice) from None


def read_json(
    path: Path, kind: type[_Value], advice: str = AGAIN, *, nan_is_null: bool = False
) -> _Value:
    """A JSON file as a value of a type; see `parse_json`.

    Args:
        path: the file.
        kind: what is expected.
        advice: what to do.
        nan_is_null: of a file in which older versions wrote NaN and infinity.
    """
    data, where = path.read_bytes(), f"{path} is broken"
    if nan_is_null and (b"NaN" in data or b"Infinity" in data):
        with suppress(ValueError, RecursionError):  # told of by `parse_json`
            return convert(json.loads(data, parse_constant=lambda _: None), kind, where, advice)

    return parse_json(data, kind, where, advice)


def convert(data: Any, kind: type[_Value], where: str, advice: str = "") -> _Value:
    """Parsed data (of YAML, of a table) as a value of a type; see `parse_json`."""
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        raise SchemaError(f"{where}: {_with_keys(data, kind, str(error))}.", advice) from None


def check_arguments(
    kind: Callable[..., Any], arguments: Mapping[str, Any], where: str, advice: str = ""
) -> None:
    """Refuses arguments that a class or function does not take, or that are of another type.

    Types that msgspec cannot check, such as a tower, are left to the class.

    Raises:
        SchemaError: names the argument.
    """
    parameters = signature(kind).parameters
    if unknown := sorted(set(arguments) - set(parameters)):
        raise SchemaError(
            f"{where}: unknown key(s) {unknown!s:.300}; known are {sorted(parameters)}.", advice
        )

    hints = get_type_hints(kind.__init__ if isinstance(kind, type) else kind)
    for name, value in arguments.items():
        if _is_plain(value) and name in hints:
            with suppress(TypeError):  # of msgspec: a type that it does not know
                convert({name: value}, dict[str, hints[name]], where, advice)


def _is_plain(value: Any) -> bool:
    """Tells whether JSON can hold a value."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    return value is None or isinstance(value, str | bool | int | float)


def _with_new_fields(data: bytes | str) -> Any:
    """Parsed JSON under new names; None if it has no old ones, or cannot be parsed."""
    try:
        parsed = msgspec.json.decode(data)
        renamed = with_new_fields(parsed)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    return None if renamed == parsed else renamed


@cache
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    # A decoder compiles its type, so each type has one for the whole process.
    return msgspec.json.Decoder(kind)


def _reason(data: bytes | str, error: Exception, kind: Any) -> str:
    """The reason of an error; msgspec calls half of a surrogate pair truncated data."""
    if isinstance(error, msgspec.ValidationError):
        try:
            return _with_keys(msgspec.json.decode(data), kind, str(error))
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return quote(error)

    # Python's reader tells apart what msgspec reports alike: NaN, half of a pair, and no JSON.
    constants: list[str] = []
    try:
        json.dumps(json.loads(data, parse_constant=constants.append), ensure_ascii=False).encode()
        if constants:
            return f"{constants[0]} is no number that JSON has"
    except UnicodeEncodeError:
        return "a text holds half of a surrogate pair, so it is no valid Unicode"
    except (ValueError, RecursionError):
        pass

    return f"no JSON ({quote(error, 200)})"


def _with_keys(data: Any, kind: Any, message: str) -> str:
    """The message with the keys of tables, for which msgspec writes `[...]`.

    A broken key is found by bisection: half of the keys are left out and the rest is read again.
    """
    problem, at, path = message.rpartition(" - at `$")
    trail: list[str | int] = []
    for name, place in _STEP.findall(path):
        if place != "...":
            trail.append(name or int(place))
            continue

        table = _inside(data, trail)
        keys = list(table) if isinstance(table, dict) else []
        while len(keys) > 1:
            half = keys[: len(keys) // 2]
            trial = _changed(data, trail, {key: table[key] for key in half})
            keys = half if _problem(trial, kind) == message else keys[len(half) :]

        # The message must come from this key alone, or the path would name the wrong one.
        if not keys or _problem(_changed(data, trail, {keys[0]: table[keys[0]]}), kind) != message:
            return f"{message:.300}"

        path = path.replace("[...]", f"[{keys[0]!r:.60}]", 1)
        trail.append(keys[0])
    return f"{problem:.200}{at}{path:.200}"


def _problem(data: Any, kind: Any) -> str:
    try:
        msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        return str(error)
    return ""


def _inside(data: Any, trail: list[str | int]) -> Any:
    for step in trail:
        data = data[step]
    return data


def _changed(data: Any, trail: list[str | int], value: Any) -> Any:
    """A copy in which another value stands at the end of the trail."""
    if not trail:
        return value
    first, *rest = trail
    inner = _changed(data[first], rest, value)
    if isinstance(data, dict):
        return {**data, first: inner}
    return [*data[:first], inner, *data[first + 1 :]]
