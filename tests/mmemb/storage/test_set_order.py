"""The order of a set of whole numbers against real sets, and no other set's order in the code."""

from __future__ import annotations

import random
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmemb.storage.set_order import set_order

CPYTHON = sys.implementation.name == "cpython" and sys.hash_info.width == 64


@pytest.mark.skipif(not CPYTHON, reason="other interpreters order sets in their own way")
@given(
    numbers=st.lists(
        st.one_of(st.integers(0, 40), st.integers(0, 3000), st.integers(0, 2**70)), max_size=60
    )
)
@settings(max_examples=40, deadline=None)
def test_order_is_that_of_a_real_set(numbers: list[int]) -> None:
    assert set_order(numbers) == list(set(numbers))


@pytest.mark.skipif(not CPYTHON, reason="other interpreters order sets in their own way")
@pytest.mark.parametrize("start", [0, 5, 1000])
def test_order_of_a_run_of_page_numbers(start: int) -> None:
    for num in (1, 4, 5, 18, 19, 76, 77, 306):
        assert set_order(range(start, start + num)) == list(set(range(start, start + num)))


@pytest.mark.slow
@pytest.mark.skipif(not CPYTHON, reason="other interpreters order sets in their own way")
def test_order_of_a_large_set() -> None:
    numbers = random.Random(0).sample(range(10**7), 120_000)
    assert set_order(numbers) == list(set(numbers))
