"""One check of JSON for every reader: types, ranges, keys, Unicode."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest

from mmemb.records.schema import (
    Schema,
    SchemaError,
    check_arguments,
    convert,
    parse_json,
    read_json,
)


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
        (b'{"name": NaN}', "NaN is no number that JSON has"),
        (b'{"name": "\xff"}', "no JSON"),
        (b'{"name": "\\ud83d"}', "half of a surrogate pair"),
        (b'{"name": "\\ud83d and more"}', "half of a surrogate pair"),
        ('{"name": "\ud83d"}', "half of a surrogate pair|no JSON"),
    ],
)
def test_what_does_not_fit_names_file_and_field(data: bytes | str, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        parse_json(data, _Row, "F")


def test_nan_of_older_versions_is_null(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    path.write_text('{"a": NaN, "b": [-Infinity, 1.5], "c": 2}')
    kind = dict[str, float | None | list[float | None]]
    assert read_json(path, kind, nan_is_null=True) == {"a": None, "b": [None, 1.5], "c": 2}
    for options in ({}, {"nan_is_null": True}):
        with pytest.raises(SchemaError, match=r"summary\.json is broken: .*NaN|Expected `int`"):
            read_json(path, dict[str, int], **options)


def test_a_constructor_gets_what_it_states() -> None:
    def make(width: int, name: str = "", tower: object = None) -> None: ...

    check_arguments(make, {"width": 3, "tower": {"a": 1}}, "F")
    for arguments, words in (
        ({"width": "3"}, r"F: Expected `int`, got `str` - at `\$\['width'\]`"),
        ({"breadth": 3}, r"F: unknown key\(s\) \['breadth'\]; known are"),
        ({"a" * 3000: 3}, r"^.{,400}$"),
    ):
        with pytest.raises(SchemaError, match=words):
            check_arguments(make, arguments, "F")


def test_deep_nesting_is_no_recursion_error() -> None:
    with pytest.raises(SchemaError, match="F: the JSON is nested too deeply"):
        parse_json(b"[" * 100_000, Any, "F")
    with pytest.raises(SchemaError, match="F: Expected `str`, got `array`"):
        parse_json(b'{"a": ' + b"[" * 100_000, dict[str, str], "F")


def test_a_mark_of_byte_order_is_no_part_of_the_json() -> None:
    assert parse_json(b'\xef\xbb\xbf{"name": "a"}', _Row, "F") == _Row(name="a")
    assert parse_json('\ufeff{"name": "a"}', _Row, "F") == _Row(name="a")


def test_what_fits_is_read() -> None:
    assert parse_json(b'{"name": "\\ud83d\\ude00"}', _Row, "F") == _Row(name="😀")
    assert convert({"name": "a", "grade": 2}, _Row, "F").grade == 2.0
    with pytest.raises(SchemaError, match=r"F: Expected `str`"):
        convert({"name": []}, _Row, "F")
