"""The hint at the nearest name."""

from __future__ import annotations

from mmemb.records.nearest_name import nearest


def test_a_hint_is_given_only_where_something_is_near() -> None:
    assert nearest("zzz", ["temperature"]) == ""
