"""Turns a plan into a data root: shards of candidates and queries, `tasks.json`, `manifest.json`.

A finished root of the same fingerprint stays as it is; in an unfinished one only holes are filled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

from datamodules.evaluation import CANDIDATES, QUERIES, TASKS
from datamodules.prepare.mmeb.pictures import PictureReader, UnreadableError
from datamodules.prepare.mmeb.plan import Media, Picture, TaskPlan
from datamodules.prepare.mmeb.samples import candidate_sample, query_sample
from mmemb.files import file_sha256
from mmemb.guards import GIB, check_disk
from mmemb.lineage import canonical_json, write_json
from mmemb.records import to_json
from mmemb.shard_writer import Sample, finish_manifest, write_shard
from mmemb.shards import (
    MANIFEST,
    Source,
    check_shard,
    existing_shards,
    index_path,
    read_manifest,
    read_record,
)

FORMAT = 1
"""Raise it whenever this code writes something else for the same plan."""

_WITH_MEDIA, _TEXT_ONLY = 128, 4096  # samples of a shard


@final
@dataclass(frozen=True, slots=True)
class Settings:
    """How roots are written.

    Attributes:
        workers: shards that are written at once, a thread each.
        on_error: what a picture that cannot be had means: stop, or leave its row out.
        tell: hears folder, shards done, shards in all.
    """

    workers: int = 1
    on_error: Literal["raise", "skip"] = "raise"
    tell: Callable[[str, int, int], None] = lambda *_: None


@final
@dataclass(frozen=True, slots=True)
class _Folder:
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


def write_root(plan: TaskPlan, root: Path, settings: Settings) -> dict[str, Any]:
    """Writes a task's data root.

    Returns:
        Its manifest; `partial` says whether rows were left out, and `skipped` which and why.

    Raises:
        ValueError: a picture cannot be had, and `on_error` is `raise`.
    """
    sources = _sources(plan)
    mark = plan_mark(plan, sources)
    if manifest := finished(root, mark, settings):
        return manifest
    check_disk(root, _needed_bytes(plan) / GIB)
    root.mkdir(parents=True, exist_ok=True)
    for name in (MANIFEST, TASKS):
        (root / name).unlink(missing_ok=True)
    with PictureReader(plan, root) as reader:
        kept, lost = _write_candidates(plan, root, mark, sources, reader, settings)
        num_queries, skipped = _write_queries(plan, root, mark, sources, reader, settings, kept)
    manifest = _manifest(plan, mark, sources, num_queries, len(kept), lost + skipped)
    write_json(root / TASKS, [to_json(plan.task.evaluation)])
    write_json(root / MANIFEST, manifest)
    return manifest


def finished(root: Path, mark: str, settings: Settings) -> dict[str, Any] | None:
    """The manifest of a root that is whole and of this fingerprint; else None."""
    try:
        manifest = json.loads((root / MANIFEST).read_bytes())
        for folder in (root / CANDIDATES, root / QUERIES):
            for shard in read_manifest(folder).shards:
                check_shard(folder, shard, verify=False)  # readers hash what they open
    except (OSError, ValueError):
        return None
    good_enough = settings.on_error == "skip" or not manifest.get("partial", True)
    whole = manifest.get("fingerprint") == mark and (root / TASKS).is_file()
    return manifest if whole and good_enough else None


def plan_mark(plan: TaskPlan, sources: Sequence[Source]) -> str:
    """A hash of all that the root depends on: the plan, and the bytes of its annotations."""
    digest = hashlib.sha256()
    parts: list[Any] = [FORMAT, _WITH_MEDIA, _TEXT_ONLY, repr(plan.task)]
    parts += [[source.package, source.sha256] for source in sources]
    for part in parts:
        digest.update(canonical_json(part).encode())
    for query in plan.queries:
        rows = query.candidates if query.candidates is None else query.candidates.tolist()
        grades = list(query.relevance.items())
        text = (query.concept, query.instruction, query.text, query.answers)
        digest.update(canonical_json([text, _media(query.media), grades, rows]).encode())
    for row in plan.candidates:
        data = (row.name, row.instruction, row.text, _media(row.media))
        digest.update(canonical_json(data).encode())
    return digest.hexdigest()[:16]


def _media(media: Media) -> list[Any]:
    return [media.moving, bool(media.problem), [(p.name, p.size, p.row) for p in media.pictures]]


def _sources(plan: TaskPlan) -> tuple[Source, ...]:
    licence = "as its repository states"
    return tuple(
        Source(str(p.relative_to(plan.source)), plan.task.revision, licence, file_sha256(p))
        for p in plan.files
    )


def _needed_bytes(plan: TaskPlan) -> int:
    media = [side.media for side in (*plan.queries, *plan.candidates)]
    pictures: Iterable[Picture] = (p for m in media for p in m.pictures)
    return sum(p.size for p in pictures) + 2 * sum(path.stat().st_size for path in plan.corpus)


def _write_candidates(
    plan: TaskPlan,
    root: Path,
    mark: str,
    sources: tuple[Source, ...],
    reader: PictureReader,
    settings: Settings,
) -> tuple[list[int], list[str]]:
    rows = plan.candidates
    folder = _Folder(
        path=root / CANDIDATES,
        mark=mark,
        count=len(rows),
        size=_shard_size(row.media for row in rows),
        sources=sources,
        sample=lambda n: candidate_sample(plan, n, reader.members(rows[n].media, "c")),
    )
    return _write_folder(folder, settings)


def _write_queries(
    plan: TaskPlan,
    root: Path,
    mark: str,
    sources: tuple[Source, ...],
    reader: PictureReader,
    settings: Settings,
    kept: Sequence[int],
) -> tuple[int, list[str]]:
    rows = plan.queries
    row_of = {number: row for row, number in enumerate(kept)}
    if len(kept) < len(plan.candidates):  # row numbers of the lists depend on who is left
        mark = hashlib.sha256(canonical_json([mark, kept]).encode()).hexdigest()[:16]
    folder = _Folder(
        path=root / QUERIES,
        mark=mark,
        count=len(rows),
        size=_shard_size(row.media for row in rows),
        sources=sources,
        sample=lambda n: query_sample(plan, n, reader.members(rows[n].media, "q"), row_of),
    )
    written, lost = _write_folder(folder, settings)
    return len(written), lost


def _shard_size(media: Iterable[Media]) -> int:
    return _WITH_MEDIA if any(m.pictures or m.problem for m in media) else _TEXT_ONLY


def _write_folder(folder: _Folder, settings: Settings) -> tuple[list[int], list[str]]:
    """Fills the holes of a folder; returns the rows that it holds, and why others are missing."""
    whole = _drop_others(folder, settings)
    shards = folder.shards
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
        pool.shutdown(cancel_futures=True)
    finish_manifest(folder.path, folder.mark, shards, folder.sources)
    kept = [int(e.key) for name in shards for e in read_record(folder.path, name).entries]
    return kept, [_why(folder, n) for n in sorted(set(range(folder.count)) - set(kept))]


def _drop_others(folder: _Folder, settings: Settings) -> set[str]:
    """Removes shards of other settings, and those with holes if none are wanted; names the rest."""
    folder.path.mkdir(parents=True, exist_ok=True)
    (folder.path / MANIFEST).unlink(missing_ok=True)
    found, shards = existing_shards(folder.path, folder.mark), folder.shards
    whole = {
        name
        for name, rows in shards.items()
        if name in found and (settings.on_error == "skip" or found[name].num_samples == len(rows))
    }
    for path in folder.path.glob("*.tar"):
        if path.name not in whole:
            path.unlink()
            index_path(folder.path, path.name).unlink(missing_ok=True)
    return whole


def _write_one(folder: _Folder, name: str, rows: range, settings: Settings) -> None:
    def samples() -> Iterable[Sample]:
        for number in rows:
            try:
                sample = folder.sample(number)
            except UnreadableError:
                if settings.on_error == "raise":
                    raise
                continue
            yield sample

    write_shard(folder.path, name, samples(), fingerprint=folder.mark)


def _why(folder: _Folder, number: int) -> str:
    try:
        folder.sample(number)
    except UnreadableError as error:
        return f"{folder.path.name} {number}: {error}"
    return f"{folder.path.name} {number}: was unreadable when its shard was written"


def _manifest(
    plan: TaskPlan,
    mark: str,
    sources: Sequence[Source],
    num_queries: int,
    num_candidates: int,
    skipped: list[str],
) -> dict[str, Any]:
    return {
        "format_version": FORMAT,
        "benchmark": "MMEB-V2",
        "task": plan.task.name,
        "modality": plan.task.modality,
        "revision": plan.task.revision,
        "fingerprint": mark,
        "counts": {
            "queries": num_queries,
            "candidates": num_candidates,
            "list_lengths": plan.list_lengths,
            "shadowed": plan.shadowed,
            "repeated_pages": len(plan.twins),
        },
        "sources": [to_json(source) for source in sources],
        "partial": bool(skipped),
        "skipped": skipped,
    }
