"""The prepared data of a stage: the number of its samples, and a few of them to measure.

Counts come from manifests and indices; lengths from a few samples, spread evenly over a folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datamodules.samples import Row, SampleReader, rows_of
from datamodules.sidecars import RationaleTable
from experiments.plan.lengths import SideLengths
from mmemb.records.inputs import Side
from mmemb.records.rationales import Rationale
from mmemb.storage.manifests import MANIFEST
from mmemb.storage.shard_index import ShardIndex

NUM_SAMPLED = 48
"""Samples whose sides are measured. The longest of them stands for the longest of all, so a folder
with rare long sides needs room to spare."""

_SAMPLE_OVERHEAD = 3 * 512 + 400
"""Bytes of a sample beside its content: a header of 512 in a tar and padding to 512 for each of its
members (one or two), and its entry in the index."""


def rows_below(root: Path, folders: Iterable[str]) -> tuple[Row, ...]:
    """Returns all samples of some folders; shards are not hashed."""
    return tuple(
        row for folder in folders for row in rows_of(ShardIndex.open(root / folder, verify=False))
    )


def trained_rows(root: Path, arguments: Mapping[str, Any]) -> tuple[Row, ...]:
    """Returns the pairs that `PairDataModule` trains on, by its arguments.

    Raises:
        ValueError: the arguments leave no pair.
    """
    # A pair without a fold is trained on by both judges.
    weights, fold = arguments.get("source_weights") or {}, arguments.get("fold")
    whole = rows_below(root, arguments["pairs"])
    weighted = [row for row in whole if not weights or row.meta["source"] in weights]
    rows = tuple(r for r in weighted if fold is None or r.meta.get("fold", "") in (fold, ""))
    if not rows:
        raise ValueError(
            f"data.pairs {arguments['pairs']} with source_weights {sorted(weights)} and fold "
            f"{fold} leave no pair to train on. Correct one of these keys."
        )
    return rows


def spread(rows: Sequence[Row], most: int = NUM_SAMPLED) -> list[Row]:
    """Returns a few rows, evenly spread.

    >>> len(spread(range(1000))), spread(range(9), most=3)
    (48, [0, 3, 6])
    """
    return list(rows[:: max(1, len(rows) // most)])[:most]


def sides_of(rows: Sequence[Row], lengths: SideLengths, which: str) -> list[Side]:
    """Returns the sides of a few rows, with pixels if their sizes matter.

    Args:
        rows: pairs, queries or candidates.
        lengths: has `reads_pixels`.
        which: `query`, `target` or `candidate`.
    """
    # A picture is decoded only where its size decides how many tokens it takes.
    read = getattr(SampleReader(pixels=lengths.reads_pixels), f"{which}_side")
    return [read(row) for row in spread(rows)]


def rationale_lengths(
    rows: Sequence[Row], sidecar: str | None, most: int
) -> list[Rationale | int | None]:
    """Returns a rationale for each row: of the sidecar, if it exists yet, else `most` tokens."""
    if sidecar is None:
        return [None] * len(rows)
    if not (Path(sidecar) / MANIFEST).is_file():
        return [most] * len(rows)

    # Of several drafts the longest decides how much memory a row needs.
    sources = {id(row.index): row.index for row in rows}.values()
    table = RationaleTable(sidecar, sources)
    pools = [table.read_rationales(row) if table.covers(row) else () for row in rows]
    return [max(pool, key=lambda r: len(r.text)) if pool else None for pool in pools]


def sidecar_bytes(samples: int, content: float) -> int:
    """Returns the bytes of a sidecar on disk.

    Args:
        samples: rows.
        content: bytes of a row, without tar and index.

    >>> sidecar_bytes(10, 64)
    20000
    """
    return int(samples * (content + _SAMPLE_OVERHEAD))
