"""JSON from anywhere as typed values: one check of types, ranges and keys for every reader."""

from __future__ import annotations

import json
from functools import cache
from typing import Any, TypeVar, final

import msgspec

_Value = TypeVar("_Value")


@final
class SchemaError(ValueError):
    """JSON that is none, or is not what its reader expects.

    Attributes:
        problem: names file, key and field and what was expected; the message adds what to do.
    """

    def __init__(self, problem: str, advice: str = "") -> None:
        super().__init__(f"{problem} {advice}".strip())
        self.problem = problem


class Schema(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of the records that say what a JSON object holds; a key that is no field is an error."""


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
    mmemb.schema.SchemaError: File f.json: Expected `int`, got `str` - at `$[...][1]`.
    """
    try:
        return _decoder(kind).decode(data)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise SchemaError(f"{where}: {_reason(data, error)}.", advice) from None
    except RecursionError:
        raise SchemaError(f"{where}: the JSON is nested too deeply.", advice) from None


def convert(data: Any, kind: type[_Value], where: str, advice: str = "") -> _Value:
    """Parsed data (of YAML, of a table) as a value of a type; see `parse_json`."""
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        raise SchemaError(f"{where}: {error!s:.300}.", advice) from None


@cache
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


def _reason(data: bytes | str, error: Exception) -> str:
    """What is wrong; msgspec calls half of a surrogate pair truncated data."""
    if isinstance(error, msgspec.ValidationError):
        return f"{error!s:.300}"
    try:
        json.dumps(json.loads(data), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return "a text holds half of a surrogate pair, so it is no valid Unicode"
    except (ValueError, RecursionError):
        pass
    return f"no JSON ({error!s:.200})"
