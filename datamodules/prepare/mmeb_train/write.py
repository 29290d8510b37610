"""Writes rows of the mixture as pairs, and held-out ones as queries: val, gate, calibration."""

from __future__ import annotations

import collections
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

from tqdm import tqdm

from datamodules.prepare.mmeb.pictures import UnreadableError
from datamodules.prepare.mmeb_train.media import MediaStore
from datamodules.prepare.mmeb_train.rows import TrainRow, TrainSide, read_source
from datamodules.prepare.mmeb_train.sources import Source
from mmemb.records.hashing import stable_hash
from mmemb.records.pairs import SPLITS
from mmemb.records.schema import Schema
from mmemb.storage.shard_writer import Sample, encode_members, write_folder

SAMPLES_PER_SHARD = 512

Held = tuple[str, TrainRow]
"""A split, and a row that is held out for it."""


@final
@dataclass(frozen=True, slots=True)
class Cut:
    """Decides by a hash of a row's topic whether it is held out: no picture lies in two splits.

    Attributes:
        share: of the topics, for split `val`.
        gate: the same for split `gate`.
        calibration: the same for split `calibration`.
        most: queries of a source and split at most; held-out rows beyond it are not trained on.
    """

    share: float = 0.01
    gate: float = 0.01
    calibration: float = 0.005
    most: int = 200

    @property
    def shares(self) -> dict[str, float]:
        """Split -> share of the topics."""
        return {"val": self.share, "gate": self.gate, "calibration": self.calibration}

    def split(self, row: TrainRow) -> str:
        """Returns the split that the row's topic belongs to."""
        # By hash and not by number, so that another cap or order moves no topic to another split.
        place, end = stable_hash("mmeb-train validation", row.topic) % 10_000, 0.0
        for name, share in self.shares.items():
            end += 10_000 * share
            if place < end:
                return name
        return "train"


@final
class Report(Schema):
    """Counts of a source's rows by what became of them.

    Attributes:
        fingerprint: of all that the pairs are made from.
        pairs: written.
        held_out: in the cuts; at most `Cut.most` of a split become queries.
        empty: with nothing on one side.
        skipped: one sentence for each row that could not be read.
    """

    fingerprint: str
    pairs: int
    held_out: int
    empty: int
    skipped: tuple[str, ...]


def write_pairs(
    source: Source, folder: Path, out: Path, cut: Cut, fingerprint: str, skips: bool
) -> Report:
    """Writes `<out>/pairs/<source>`; shards of the same fingerprint stay."""
    counts, skipped = {"pairs": 0, "held_out": 0, "empty": 0}, list[str]()
    store = MediaStore(folder)

    def samples() -> Iterator[Sample]:
        for row in tqdm(read_source(source, folder), desc=source.name, disable=None):
            # The fault comes first: a row with a fault has empty sides as well.
            if row.fault:
                _leave_out(source, row, row.fault, skips, skipped)
            elif row.is_empty:
                counts["empty"] += 1
            # All held-out topics stay out of training, also beyond `Cut.most`.
            elif cut.split(row) != "train":
                counts["held_out"] += 1
            else:
                try:
                    sample = _pair(source, row, store)
                except UnreadableError as error:
                    _leave_out(source, row, str(error), skips, skipped)
                    continue
                counts["pairs"] += 1
                yield sample

    stream = samples()
    write_folder(
        out / "pairs" / source.name,
        stream,
        prefix=source.name,
        samples_per_shard=SAMPLES_PER_SHARD,
        fingerprint=fingerprint,
    )

    # Shards that an earlier, killed run completed are not read above, but their rows count.
    collections.deque(stream, maxlen=0)
    return Report(fingerprint, **counts, skipped=tuple(skipped))


def held_out_rows(source: Source, folder: Path, cut: Cut, skips: bool) -> list[Held]:
    """Returns the first readable rows of each held-out split, `cut.most` at most, one a topic."""
    by_topic: dict[str, Held] = {}
    counts: Counter[str] = Counter()
    store = MediaStore(folder)

    for row in read_source(source, folder):
        if row.fault:
            _leave_out(source, row, row.fault, skips, [])
            continue

        split = cut.split(row)
        # One row for each topic: equal queries would count several times.
        is_needed = split != "train" and counts[split] < cut.most
        if row.is_empty or row.topic in by_topic or not is_needed:
            continue

        # The media are decoded here, so that a query never fails after it was counted.
        try:
            for side in (row.query, row.target):
                store.members(side, "q")
        except UnreadableError as error:
            _leave_out(source, row, str(error), skips, [])
            continue

        by_topic[row.topic] = (split, row)
        counts[split] += 1

        # All splits are full: the rest of a large source need not be read.
        if all(counts[held] >= cut.most for held, share in cut.shares.items() if share):
            break

    return sorted(by_topic.values(), key=lambda held: SPLITS.index(held[0]))


def _leave_out(source: Source, row: TrainRow, fault: str, skips: bool, skipped: list[str]) -> None:
    """Adds a row that cannot be read to `skipped`; without `skips` raises ValueError."""
    problem = f"{source.name}, row {row.number}: {fault}"
    if not skips:
        raise ValueError(problem)
    skipped.append(problem)


def write_held_out(
    rows: Mapping[Source, list[Held]], folders: Mapping[Source, Path], out: Path, mark: str
) -> None:
    """Writes `queries/` and `candidates/`: each source is a task, whose targets are its gallery.

    Args:
        rows: held-out rows by source.
        folders: place of each source's annotations and media.
        out: the data root.
        mark: fingerprint of the shards.
    """
    # A target of several rows is one candidate of its source.
    candidates = {
        (source, row.target.name): row.target for source, held in rows.items() for _, row in held
    }

    stores = {source: MediaStore(folder) for source, folder in folders.items()}
    # Generators, so that no more than one shard's media are in memory.
    tables: dict[str, Iterable[Sample]] = {
        "candidates": (
            _candidate(source, number, side, stores[source])
            for number, ((source, _), side) in enumerate(candidates.items())
        ),
        "queries": (
            _query(source, split, row, stores[source])
            for source, held in rows.items()
            for split, row in held
        ),
    }

    for name, samples in tables.items():
        write_folder(
            out / name,
            samples,
            prefix=name,
            samples_per_shard=SAMPLES_PER_SHARD,
            fingerprint=mark,
        )


def _pair(source: Source, row: TrainRow, store: MediaStore) -> Sample:
    query, target = row.query, row.target
    meta = _labels(source, row, "train") | {"source": source.name}
    data = meta | {
        "gallery": source.name,
        "instruction": query.instruction,
        "text": query.text,
        "target_instruction": target.instruction,
        "target_text": target.text,
        "target_name": target.name,
        "positives": [target.name],
        "answers": [target.text] if target.text else [],
    }

    members = store.members(query, "q") | store.members(target, "t")
    return Sample(_key(source, row), members | encode_members({"json": data}), meta | {"fold": ""})


def _query(source: Source, split: str, row: TrainRow, store: MediaStore) -> Sample:
    labels = _labels(source, row, split)
    data = labels | {
        "instruction": row.query.instruction,
        "text": row.query.text,
        "relevance": {row.target.name: 1.0},
        "answers": [row.target.text] if row.target.text else [],
    }

    members = store.members(row.query, "q") | encode_members({"json": data})
    return Sample(_key(source, row), members, labels | {"gallery": source.name})


def _candidate(source: Source, number: int, side: TrainSide, store: MediaStore) -> Sample:
    meta = {"gallery": source.name, "name": side.name}
    data = meta | {"instruction": side.instruction, "text": side.text}
    return Sample(f"{number:08d}", store.members(side, "c") | encode_members({"json": data}), meta)


def _labels(source: Source, row: TrainRow, split: str) -> dict[str, str]:
    # A topic may be a long text, so its hash is the name of the concept.
    concept = f"{stable_hash(source.name, row.topic, bits=64):016x}"
    fact = f"{source.name}/{concept}"
    return {"task": source.name, "split": split, "concept": concept, "fact": fact}


def _key(source: Source, row: TrainRow) -> str:
    return f"{source.name}-{row.number:07d}"
