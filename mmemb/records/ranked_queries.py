"""Ranked queries: how the right candidates of every query of a test stood, as a run keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, final

import msgspec

from mmemb.records.schema import Count, Schema


@final
class RankedQuery(Schema):
    """One query among its candidates.

    Attributes:
        candidates: how many it was ranked among, names counted once.
        right: names of the right candidates, highest grade first.
        rank: expected rank of the best right candidate, 1 at best; ties are in random order.
        found: names of the best candidates, best first.
        metrics: name -> value, such as `recall@1`; `chance@1` is the expected Recall@1 of
            candidates in random order.
    """

    key: str
    task: str
    concept: str
    gallery: str
    candidates: Count
    right: tuple[str, ...]
    rank: Annotated[float, msgspec.Meta(ge=1)]
    metrics: Mapping[str, float]
    found: tuple[str, ...] = ()


@final
class RankedQueries(Schema):
    """All queries of a test, in the order of their keys: a run's `ranks.json`."""

    queries: tuple[RankedQuery, ...]
