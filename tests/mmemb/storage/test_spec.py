"""Objects are built from JSON, nested ones first; other classes are never imported."""

from __future__ import annotations

import sys
from fractions import Fraction

import pytest

from mmemb.storage.spec import build, class_at, class_path


def allowed(path: str) -> type:
    if path != class_path(Fraction()):
        raise ValueError(f"{path} is refused")
    kind = class_at(path)
    assert kind is not None
    return kind


def spec(**arguments: object) -> dict[str, object]:
    return {"class_path": "fractions.Fraction", "init_args": arguments}


def test_nested_objects_are_made_first() -> None:
    half = spec(numerator=1, denominator=2)
    assert build(spec(numerator=half, denominator=half), allowed) == 1


def test_a_class_that_may_not_be_named_is_not_imported() -> None:
    sys.modules.pop("this", None)
    with pytest.raises(ValueError, match="this.d is refused"):
        build(spec(numerator={"class_path": "this.d"}), allowed)
    assert "this" not in sys.modules


def test_an_unknown_argument_is_one_error_that_names_file_and_class() -> None:
    with pytest.raises(ValueError, match=r"^F: fractions\.Fraction: .*'hat'"):
        build(spec(hat=1), allowed, "F")
