"""One check of JSON for every reader: types, ranges, keys, Unicode."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import pytest

from mmemb.schema import Schema, SchemaError, convert, parse_json


class _Row(Schema):
    name: str
    grade: Annotated[float, msgspec.Meta(gt=0)] = 1.0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"name": 3}', r"F: Expected `str`, got `int` - at `\$\.name`\."),
        (b'{"name": "a", "grade": 0}', r"Expected `float` > 0.0 - at `\$\.grade`"),
        (b'{"name": "a", "more": 1}', "unknown field `more`"),
        (b"{}", "missing required field `name`"),
        (b'{"name": "a"', "no JSON"),
        (b'{"name": NaN}', "no JSON"),
        (b'{"name": "\xff"}', "no JSON"),
        (b'{"name": "\\ud83d"}', "half of a surrogate pair"),
        (b'{"name": "\\ud83d and more"}', "half of a surrogate pair"),
        ('{"name": "\ud83d"}', "half of a surrogate pair|no JSON"),
    ],
)
def test_what_does_not_fit_names_file_and_field(data: bytes | str, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        parse_json(data, _Row, "F")


def test_deep_nesting_is_no_recursion_error() -> None:
    with pytest.raises(SchemaError, match="F: the JSON is nested too deeply"):
        parse_json(b"[" * 100_000, Any, "F")


def test_what_fits_is_read() -> None:
    assert parse_json(b'{"name": "\\ud83d\\ude00"}', _Row, "F") == _Row(name="😀")
    assert convert({"name": "a", "grade": 2}, _Row, "F").grade == 2.0
    with pytest.raises(SchemaError, match=r"F: Expected `str`"):
        convert({"name": []}, _Row, "F")
