"""Frozen records that a step returns: to callbacks, and through them to files.

Shapes: B rows, N candidates, D embedding width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, final

from torch import Tensor

from mmemb.records.pairs import Query
from mmemb.records.tensor_fields import Movable

OUTPUT = "output"
"""Key of the record in the dictionary that Lightning wants of a training step."""


@final
@dataclass(frozen=True, slots=True)
class CandidateOutput(Movable):
    """Embedded candidates; all else is parallel to the vectors.

    `rows` are their numbers in the candidate table, to which local candidate lists refer; `sizes`
    are those of `CandidateBatch`.
    """

    vectors_ND: Tensor
    names: tuple[str, ...]
    galleries: tuple[str, ...]
    rows: tuple[int, ...]
    sizes: Mapping[str, int] = field(default_factory=dict)


@final
@dataclass(frozen=True, slots=True)
class QueryOutput(Movable):
    """Embedded queries."""

    vectors_BD: Tensor
    queries: tuple[Query, ...]


class PairOutput(NamedTuple):
    """Direct unit vectors of a training batch, and the temperature of its loss; no gradient."""

    query_BD: Tensor
    target_BD: Tensor
    temperature: Tensor


class DecisionOutput(NamedTuple):
    """Depth that each query took (0 = direct), its reasoning tokens, and if it could reason."""

    depths_B: Tensor
    tokens_B: Tensor
    eligible_B: Tensor


@final
@dataclass(frozen=True, slots=True)
class SidecarRow:
    """One sample of a sidecar shard: `members` maps an extension to JSON data or an array."""

    key: str
    members: Mapping[str, Any]
    meta: Mapping[str, str] = field(default_factory=dict)


@final
@dataclass(frozen=True, slots=True)
class SidecarOutput(Movable):
    """Rows for one sidecar shard, in the order of its source shard; or, with `failure`, the reason
    why they cannot be made now: then the shard stays unwritten, and a rerun makes it."""

    shard: str
    rows: tuple[SidecarRow, ...]
    failure: str = ""


class StepOutput(NamedTuple):
    """Result of any step: a callback reads the field that it needs, and None means none.

    A tuple, since Lightning detaches what a training step returns and refuses frozen records.

    Attributes:
        loss: of a training step, with its gradient.
        pairs: vectors of a batch of training pairs.
        candidates: embedded rows of the candidate table.
        queries: embedded queries, to be ranked among the candidates.
        decisions: how deep queries reasoned; of the same rows as `queries`, if there are any.
        sidecar: rows to write.
    """

    loss: Tensor | None = None
    pairs: PairOutput | None = None
    candidates: CandidateOutput | None = None
    queries: QueryOutput | None = None
    decisions: DecisionOutput | None = None
    sidecar: SidecarOutput | None = None

    def as_mapping(self) -> dict[str, Any]:
        """Returns the form in which Lightning takes this record from a training step."""
        return {"loss": self.loss, OUTPUT: self._replace(loss=None)}


def step_output(outputs: object) -> StepOutput:
    """Returns the record in what Lightning hands to a callback; an empty one if there is none.

    A callback also meets modules of other projects, whose steps return whatever they like.
    """
    # The record of a training step comes inside the mapping, see `as_mapping`.
    if isinstance(outputs, Mapping):
        outputs = outputs.get(OUTPUT)
    return outputs if isinstance(outputs, StepOutput) else StepOutput()
