"""Folders of shards of which some rows may have no readable picture: holes filled in parallel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

from datamodules.prepare.mmeb.pictures import UnreadableError
from mmemb.storage.manifests import MANIFEST, Source, existing_shards, index_path, read_record
from mmemb.storage.shard_writer import Sample, finish_manifest, write_shard


@final
@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of a writer of roots.

    Attributes:
        workers: shards that are written at once, a thread each.
        on_error: what a picture that cannot be had means: stop, or leave its row out.
        tell: hears folder, shards done, shards in all.
        recheck: whether pictures that look unchanged are hashed again.
    """

    workers: int = 1
    on_error: Literal["raise", "skip"] = "raise"
    tell: Callable[[str, int, int], None] = lambda *_: None
    recheck: bool = False


@final
@dataclass(frozen=True, slots=True)
class ShardFolder:
    """One folder of shards to write; `sample(n)` makes row n, or raises UnreadableError."""

    path: Path
    mark: str
    count: int
    size: int
    sources: tuple[Source, ...]
    sample: Callable[[int], Sample]

    @property
    def shards(self) -> dict[str, range]:
        """Name -> its rows."""
        starts = range(0, self.count, self.size)
        return {
            f"{self.path.name}-{n:06d}.tar": range(start, min(start + self.size, self.count))
            for n, start in enumerate(starts)
        }


def write_folder(folder: ShardFolder, settings: Settings) -> tuple[list[int], list[str]]:
    """Fills the holes of a folder; returns the rows that it holds, and why others are missing."""
    whole = _drop_others(folder, settings)
    shards = folder.shards

    # Threads are enough: decoding and hashing release Python's lock.
    pool = ThreadPoolExecutor(settings.workers)
    try:
        jobs = [
            pool.submit(_write_one, folder, name, rows, settings)
            for name, rows in shards.items()
            if name not in whole
        ]

        for done, job in enumerate(as_completed(jobs), len(shards) - len(jobs) + 1):
            job.result()
            settings.tell(folder.path.name, done, len(shards))
    finally:
        # At an error shards that are not begun are dropped; finished ones stay for the next run.
        pool.shutdown(cancel_futures=True)

    finish_manifest(folder.path, folder.mark, shards, folder.sources)
    # Read from the records, as shards of a former run are not made again.
    kept = [int(e.key) for name in shards for e in read_record(folder.path, name).entries]
    return kept, [_why(folder, n) for n in sorted(set(range(folder.count)) - set(kept))]


def _drop_others(folder: ShardFolder, settings: Settings) -> set[str]:
    """Removes shards of other settings, and those with holes if none are wanted; names the rest."""
    folder.path.mkdir(parents=True, exist_ok=True)
    # Without a manifest no reader opens the folder until it is whole again.
    (folder.path / MANIFEST).unlink(missing_ok=True)

    entries, shards = existing_shards(folder.path, folder.mark), folder.shards
    # After `skip` a shard may have holes; a run that wants all rows must write it anew.
    whole = {
        name
        for name, rows in shards.items()
        if name in entries
        and (settings.on_error == "skip" or entries[name].num_samples == len(rows))
    }

    for path in folder.path.glob("*.tar"):
        if path.name not in whole:
            path.unlink()
            index_path(folder.path, path.name).unlink(missing_ok=True)
    return whole


def _write_one(folder: ShardFolder, name: str, rows: range, settings: Settings) -> None:
    def samples() -> Iterator[Sample]:
        for number in rows:
            # A row without its picture is passed over; the shard keeps the other rows.
            try:
                sample = folder.sample(number)
            except UnreadableError:
                if settings.on_error == "raise":
                    raise
                continue
            yield sample

    write_shard(folder.path, name, samples(), fingerprint=folder.mark)


def _why(folder: ShardFolder, number: int) -> str:
    # Decoded once more for its reason: a former run did not keep it.
    try:
        folder.sample(number)
    except UnreadableError as error:
        return f"{folder.path.name} {number}: {error}"
    return f"{folder.path.name} {number}: was unreadable when its shard was written"
