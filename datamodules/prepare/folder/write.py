"""Writes the rows of a user's table as shards: pairs, queries, candidates, negatives, tasks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import final

import numpy as np
from tqdm import tqdm

from datamodules.prepare.folder.media import side_members
from datamodules.prepare.folder.table import OwnRow, OwnSide
from mmemb.records.hashing import stable_hash
from mmemb.records.pairs import EvaluationTask
from mmemb.records.schema import to_json
from mmemb.storage.json_files import write_json
from mmemb.storage.shard_index import ShardIndex
from mmemb.storage.shard_writer import (
    Sample,
    drop_other_shards,
    encode_members,
    finish_manifest,
    write_folder,
    write_shard,
)

PAIRS, QUERIES, CANDIDATES, NEGATIVES = "pairs/plain", "queries", "candidates", "negatives"
SAMPLES_PER_SHARD = 256


@final
class CandidateTable:
    """Every target and negative of a task once, in the order of the table."""

    def __init__(self, rows: Iterable[OwnRow]) -> None:
        self.sides: dict[tuple[str, str], OwnSide] = {}
        for row in rows:
            for side in (*row.positives, *row.negatives):
                self.sides.setdefault((row.task, side.name), side)
        # Labels of queries and negatives refer to candidates by this number.
        self.row_of = {key: number for number, key in enumerate(self.sides)}

    def numbers(self, task: str, sides: Iterable[OwnSide]) -> list[int]:
        """Returns the numbers of sides of a task among all candidates."""
        return [self.row_of[task, side.name] for side in sides]


def write_data(
    out: Path,
    rows: Sequence[OwnRow],
    media: Path,
    num_frames: int,
    fingerprint: str,
    groups: Mapping[str, str],
) -> dict[str, int]:
    """Writes all folders; shards that an earlier run of the same fingerprint wrote stay.

    Args:
        out: the data root.
        rows: of the table, without faults.
        media: folder that paths start from.
        num_frames: of a clip.
        fingerprint: of all that the data are made from.
        groups: topic -> name of its group; a group is in one fold of the judges.

    Returns:
        Folder -> its number of samples.
    """
    table = CandidateTable(rows)

    train = [row for row in rows if row.split == "train"]
    evaluated = [row for row in rows if row.split != "train"]

    # Generators: the media of all samples together may exceed the memory.
    streams = {
        CANDIDATES: (_candidate(k, n, s, media, num_frames)
                     for n, (k, s) in enumerate(table.sides.items())),
        PAIRS: (_pair(row, media, num_frames, groups) for row in train),
        QUERIES: (_query(row, table, media, num_frames) for row in evaluated),
    }  # fmt: skip

    totals = {CANDIDATES: len(table.sides), PAIRS: len(train), QUERIES: len(evaluated)}

    # Shards of an older table would be read as part of the new data.
    for folder in (*streams, NEGATIVES):
        drop_other_shards(out / folder, fingerprint)

    for folder, samples in streams.items():
        if totals[folder]:
            progress = tqdm(samples, total=totals[folder], desc=folder, disable=None)
            _write(out / folder, progress, fingerprint)

    # After the pairs and candidates: the sidecar records the fingerprints of both.
    if any(row.negatives for row in train):
        totals[NEGATIVES] = _write_negatives(out, train, table, fingerprint)

    write_json(out / "tasks.json", [to_json(task) for task in _tasks(rows)])
    return totals


def _write(folder: Path, samples: Iterable[Sample], fingerprint: str) -> None:
    write_folder(
        folder,
        samples,
        prefix=folder.name,
        samples_per_shard=SAMPLES_PER_SHARD,
        fingerprint=fingerprint,
    )


def _write_negatives(
    out: Path, train: Sequence[OwnRow], table: CandidateTable, fingerprint: str
) -> int:
    """Writes the given negatives as a sidecar of the pairs; returns its number of samples."""
    pairs, row_of = ShardIndex.open(out / PAIRS), {row.key: row for row in train}
    candidates = ShardIndex.open(out / CANDIDATES).origin()
    for shard in pairs.shard_names:
        samples = []
        # The order of keys must be that of the pairs: readers take both side by side.
        for entry in pairs.of_shard(shard):
            row = row_of[entry.key]
            numbers = table.numbers(row.task, row.negatives)
            negatives = [
                {"row": number, "name": side.name, "score": 1.0}
                for number, side in zip(numbers, row.negatives, strict=True)
            ]

            samples.append(Sample(entry.key, encode_members({"json": negatives})))

        origins = (pairs.origin(shard), candidates)
        write_shard(out / NEGATIVES, shard, samples, fingerprint=fingerprint, made_from=origins)

    finish_manifest(out / NEGATIVES, fingerprint, pairs.shard_names)
    return len(train)


def _tasks(rows: Iterable[OwnRow]) -> Iterator[EvaluationTask]:
    """Yields tasks with queries; targets that are also trained on are labels, and may be seen."""
    trained: dict[str, set[str]] = defaultdict(set)
    tested: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        names = (trained if row.split == "train" else tested)[row.task]
        names |= {row.topic}

    for task, names in tested.items():
        yield EvaluationTask(task, "own", task, seen_answer=bool(names & trained[task]))


def _candidate(
    key: tuple[str, str], number: int, side: OwnSide, media: Path, num_frames: int
) -> Sample:
    task, name = key
    data = {"name": name, "gallery": task, "instruction": side.instruction, "text": side.text}
    members = side_members(media, side.media, "c", num_frames) | encode_members({"json": data})
    return Sample(f"{number:08d}", members, {"gallery": task, "name": name})


def _pair(row: OwnRow, media: Path, num_frames: int, groups: Mapping[str, str]) -> Sample:
    target, meta = row.positives[0], _labels(row) | {"source": row.task}
    data = meta | {
        "gallery": row.task,
        "instruction": row.query.instruction,
        "text": row.query.text,
        "target_instruction": target.instruction,
        "target_text": target.text,
        "target_name": target.name,
        "positives": [side.name for side in row.positives],
        "answers": _answers(row),
    }

    members = side_members(media, row.query.media, "q", num_frames)
    members |= side_members(media, target.media, "t", num_frames)

    # No judge scores what it was trained on, so concepts that share a pair lie in one fold.
    # `half` is the word of the first version: another one would move concepts to the other fold.
    fold = "ab"[stable_hash("half", groups.get(row.topic, row.topic)) % 2]
    return Sample(
        row.key, members | encode_members({"json": data}), meta | {"fold": fold} | _own_id(row)
    )


def _query(row: OwnRow, table: CandidateTable, media: Path, num_frames: int) -> Sample:
    data = _labels(row) | {
        "instruction": row.query.instruction,
        "text": row.query.text,
        "relevance": {side.name: 1.0 for side in row.positives},
        "answers": _answers(row),
    }
    members = side_members(media, row.query.media, "q", num_frames) | encode_members({"json": data})

    # A query with negatives of its own is ranked among these alone, each named once.
    if row.negatives:
        listed = dict.fromkeys(table.numbers(row.task, (*row.positives, *row.negatives)))
        members |= encode_members({"candidates.npy": np.array(list(listed), dtype=np.int32)})

    return Sample(row.key, members, _labels(row) | {"gallery": row.task} | _own_id(row))


def _labels(row: OwnRow) -> dict[str, str]:
    return {
        "task": row.task,
        "split": row.split,
        "concept": row.topic,
        "fact": f"{row.task}/{row.topic}",
    }


def _own_id(row: OwnRow) -> dict[str, str]:
    """The id as the user wrote it, for the index, if the key is another one."""
    return {} if row.id == row.key else {"id": row.id}


def _answers(row: OwnRow) -> list[str]:
    return [side.text for side in row.positives if side.text]
