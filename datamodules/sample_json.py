"""Types of the JSON of samples: pairs, queries and candidates.

`mmemb.records.pairs` has the records that they and their pictures become.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, final

import msgspec

from mmemb.records.schema import Count, Excerpt, Schema
from mmemb.retrieval.ranking_metrics import HIGHEST_GRADE

Grade = Annotated[float, msgspec.Meta(gt=0, le=HIGHEST_GRADE)]


@final
class PairJson(Schema):
    """The JSON of a sample of `pairs/`; see `mmemb.records.pairs.Pair`."""

    task: str
    split: str
    concept: str
    fact: str
    source: str
    gallery: str
    text: str
    instruction: str
    target_text: str
    target_instruction: str
    target_name: str
    positives: tuple[str, ...]
    answers: tuple[str, ...]


@final
class QueryJson(Schema):
    """The JSON of a sample of `queries/`; see `mmemb.records.pairs.Query`.

    Attributes:
        repeats: how many entries of the candidate list repeat an earlier one.
    """

    task: str
    split: str
    concept: str
    fact: str
    text: str
    instruction: str
    relevance: Annotated[dict[str, Grade], msgspec.Meta(min_length=1)]
    answers: tuple[str, ...]
    repeats: Count = 0


@final
class CandidateJson(Schema):
    """The JSON of a sample of `candidates/`; see `mmemb.records.pairs.Candidate`."""

    name: str
    gallery: str
    text: str
    instruction: str


@final
class QuerySideJson(Excerpt):
    """The query's side in the JSON of a pair or a query, and the fields that an index repeats."""

    task: str
    split: str
    concept: str
    fact: str
    text: str
    instruction: str


def check_index(data: Schema | Excerpt, meta: Mapping[str, str]) -> None:
    """Refuses a sample whose index entry and JSON disagree in a field that both have.

    Raises:
        ValueError: names the field and both values.
    """
    # Rows are chosen by the index and read from the JSON: both have to mean the same row.
    for name, stated in meta.items():
        if name in data.__struct_fields__ and (value := getattr(data, name)) != stated:
            raise ValueError(
                f"the index says {name} {stated!r}, the json {value!r}: expected the same in both."
            )
