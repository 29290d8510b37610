"""Handshakes of rooms that do not import one another: what one reads off another, by name.

A module or callback reads a data module through `require`, and the command line finds the callbacks
that it has to tell something through `having`. A data module of your own needs the members that the
protocol names, and no base class.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from typing_extensions import get_protocol_members

from mmemb.records.batches import PairRowBatch
from mmemb.records.gate_state import GateInputs
from mmemb.storage.manifests import Origin
from mmemb.storage.trained_facts import TrainedFacts

_Handshake = TypeVar("_Handshake")
_ABSENT = object()


class GateData(Protocol):
    """Data that a gate learns from."""

    @property
    def depths(self) -> tuple[str, ...]:
        """Depths at which the depth values were measured, `direct` first."""

    def check_embedder(self, run: Path) -> None:
        """Raises ValueError if the depth values are those of another embedder than `run`'s."""

    def gate_inputs(self) -> GateInputs:
        """Returns the inputs of all queries that the gate learns from, to standardise a head."""


class ShardData(Protocol):
    """Data that `predict` reads in whole shards, so that a sidecar can be written.

    Attributes:
        pending_shards: set by the writer before the loaders are made; the shards to read.
    """

    pending_shards: Collection[str] | None

    def predict_shards(self) -> tuple[str, ...]:
        """Returns the names of all shards that a complete sidecar has, in order."""

    def shard_sizes(self) -> Mapping[str, int]:
        """Returns the number of rows of each shard; an absent one is not known."""

    def origins(self) -> Mapping[str, tuple[Origin, ...]]:
        """Returns what the sidecar's shard of each name is made from."""


class JudgeData(Protocol):
    """Data that a judge reads, so that its scores can be written."""

    def scores_folder(self) -> Path:
        """Returns the folder of the scores' sidecar."""

    def judge_settings(self) -> Mapping[str, Any]:
        """Returns the settings that decide what is judged; paths count with their content."""

    def judge_origins(self) -> Mapping[str, tuple[Origin, ...]]:
        """Returns what the sidecar's shard of each name is made from."""

    def judge_loader(self, shards: Sequence[str]) -> Iterable[PairRowBatch]:
        """Returns batches of whole shards, one shard after the other."""


class BenchmarkData(Protocol):
    """Data of many roots, tested one after the other; its batches are `RankingBatch`.

    Attributes:
        pending_roots: set by the writer of scores; the roots to read.
    """

    pending_roots: Collection[str] | None

    def roots(self) -> Mapping[str, tuple[str, ...]]:
        """Returns path of a root -> its tasks."""


class FactData(Protocol):
    """Data that states the facts behind it, so that no model judges what it was fitted on."""

    @property
    def trained_facts(self) -> frozenset[str]:
        """Facts that weights are trained on. Collective."""

    @property
    def calibrated_facts(self) -> frozenset[str]:
        """Facts that only a number is fitted on."""


class FolderCallback(Protocol):
    """A callback that writes a folder outside of the run's own, and records what made it."""

    def describe_run(self, fingerprint: str, command: str, facts: TrainedFacts) -> None:
        """Takes the run's fingerprint, its command, and the facts of the models that it names."""


def require(part: object, protocol: type[_Handshake], reader: str) -> _Handshake:
    """Returns `part`, which has every member of a protocol.

    Args:
        part: a data module, or None where loaders were given without one.
        protocol: what is read off it.
        reader: the class that reads, for the error.

    Raises:
        ValueError: a member is missing.
    """
    if missing := _missing(part, protocol):
        raise ValueError(
            f"The data module must have {', '.join(missing)} for {reader}, got "
            f"{type(part).__name__}. Give it the members of mmemb.storage.protocols."
            f"{protocol.__name__}, or leave {reader} out."
        )
    return part  # type: ignore[return-value]


def having(parts: Iterable[object], protocol: type[_Handshake]) -> list[_Handshake]:
    """Returns those of the parts that have every member of a protocol."""
    return [part for part in parts if not _missing(part, protocol)]  # type: ignore[misc]


def _missing(part: object, protocol: type) -> list[str]:
    # Statically: a property such as `depths` opens files, and must not be read just to look at it.
    members = sorted(get_protocol_members(protocol))
    return [name for name in members if inspect.getattr_static(part, name, _ABSENT) is _ABSENT]
