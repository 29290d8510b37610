"""Handshakes: a part is returned as it is, or refused with the members that it lacks."""

from __future__ import annotations

import pytest

from mmemb.storage.protocols import BenchmarkData, FolderCallback, having, require


class Roots:
    """A data module of a user; `pending_roots` is set on the instance, as ours do."""

    def __init__(self) -> None:
        self.pending_roots = None

    def roots(self) -> dict[str, tuple[str, ...]]:
        raise AssertionError("looking for a member must not call it")


class Folder:
    @property
    def describe_run(self) -> object:
        raise AssertionError("looking for a member must not read it")


def test_a_part_with_all_members_is_returned() -> None:
    data = Roots()
    assert require(data, BenchmarkData, "BenchmarkScores") is data
    folder = Folder()
    assert having([data, folder, None], FolderCallback) == [folder]


@pytest.mark.parametrize(("part", "missing"), [(Folder(), "Folder"), (None, "NoneType")])
def test_a_missing_member_is_named(part: object, missing: str) -> None:
    expected = f"must have pending_roots, roots for BenchmarkScores, got {missing}. Give it"
    with pytest.raises(ValueError, match=expected):
        require(part, BenchmarkData, "BenchmarkScores")
