"""Turns a plan into a data root: shards of candidates and queries, `tasks.json`, `manifest.json`.

A finished root of the same fingerprint stays as it is; in an unfinished one only holes are filled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, final

from datamodules.data_roots import CANDIDATES, QUERIES, REPEATS, TASKS
from datamodules.prepare.mmeb.folders import Settings, ShardFolder, write_folder
from datamodules.prepare.mmeb.pictures import PictureReader
from datamodules.prepare.mmeb.plan import CandidatePlan, Media, Picture, QueryPlan, TaskPlan
from datamodules.prepare.mmeb.samples import Table, candidate_sample, query_sample
from mmemb.records.schema import Schema, read_json, to_json
from mmemb.storage.file_hashes import FileHashes
from mmemb.storage.files import file_sha256
from mmemb.storage.json_files import canonical_json, write_json
from mmemb.storage.manifests import MANIFEST, Source, check_shard, read_manifest
from mmemb.storage.resources import GIB, check_disk
from mmemb.storage.shard_writer import Sample

FORMAT = 2
"""Raise it whenever this code writes something else for the same plan."""

HASHES = "file_hashes.json"

_WITH_MEDIA, _TEXT_ONLY = 128, 4096  # samples of a shard
_ToSample = Callable[[int], Sample]


def write_root(plan: TaskPlan, root: Path, settings: Settings) -> dict[str, Any]:
    """Writes a task's data root.

    Returns:
        Its manifest; `partial` says whether rows were left out, and `skipped` which and why.

    Raises:
        ValueError: a picture cannot be had, and `on_error` is `raise`.
    """
    sources = _sources(plan)

    hashes = FileHashes(root / HASHES, settings.recheck)
    mark = plan_mark(plan, sources, hashes)
    hashes.save()

    if manifest := finished(root, mark, settings):
        return manifest

    check_disk(root, _needed_bytes(plan) / GIB)
    root.mkdir(parents=True, exist_ok=True)
    # Without these two files no reader opens the root until it is whole again.
    for name in (MANIFEST, TASKS):
        (root / name).unlink(missing_ok=True)

    with PictureReader(plan, root) as reader:
        manifest = _write(plan, root, mark, sources, reader, settings)
    # The manifest is the last file: it states that the root is whole.
    write_json(root / TASKS, [to_json(plan.task.evaluation)])
    write_json(root / MANIFEST, manifest)
    return manifest


@final
class _ManifestJson(Schema):
    """The manifest of a task's data root; `counts` holds numbers, and `list_lengths` as a pair."""

    format_version: int
    benchmark: str
    task: str
    modality: str
    revision: str | None
    fingerprint: str
    counts: dict[str, Any]
    sources: list[Source]
    partial: bool
    skipped: list[str]


def finished(root: Path, mark: str, settings: Settings) -> dict[str, Any] | None:
    """The manifest of a root that is whole and of this fingerprint; else None."""
    # Whatever is broken or missing here, writing again repairs it.
    try:
        manifest = read_json(root / MANIFEST, _ManifestJson)
        for folder in (root / CANDIDATES, root / QUERIES):
            for shard in read_manifest(folder).shards:
                check_shard(folder, shard, verify=False)  # readers hash what they open
    except (OSError, ValueError):
        return None

    good_enough = settings.on_error == "skip" or not manifest.partial
    whole = manifest.fingerprint == mark and (root / TASKS).is_file()
    return to_json(manifest) if whole and good_enough else None


def plan_mark(plan: TaskPlan, sources: Sequence[Source], hashes: FileHashes) -> str:
    """A hash of all that the root depends on: the plan, the bytes of its annotations and media."""

    def files(media: Media) -> list[Any]:
        pictures = [(p.name, _content(plan, p, hashes), p.row) for p in media.pictures]
        return [media.moving, bool(media.problem), pictures]

    digest = hashlib.sha256()
    parts: list[Any] = [FORMAT, _WITH_MEDIA, _TEXT_ONLY, repr(plan.task)]
    parts += [[source.package, source.sha256] for source in sources]
    for part in parts:
        digest.update(canonical_json(part).encode())

    for query in plan.queries:
        rows = query.candidates if query.candidates is None else query.candidates.tolist()
        grades = list(query.relevance.items())
        text = (query.concept, query.instruction, query.text, query.answers)
        # Only lists with repeats are marked, so all other fingerprints stay as they were.
        repeats = [REPEATS] if rows and len(set(rows)) < len(rows) else []
        labels = [text, files(query.media), grades, rows, *repeats]
        digest.update(canonical_json(labels).encode())

    for row in plan.candidates:
        data = (row.name, row.instruction, row.text, files(row.media))
        digest.update(canonical_json(data).encode())

    return digest.hexdigest()[:16]


def _content(plan: TaskPlan, picture: Picture, hashes: FileHashes) -> str:
    """The hash of a picture's file; that of a row lies in a corpus, which is hashed whole."""
    if picture.row >= 0:
        return ""
    try:
        return hashes.sha256(plan.source / picture.name)
    except OSError:
        return "unreadable"  # told of when it is written


def _sources(plan: TaskPlan) -> tuple[Source, ...]:
    licence = "as its repository states"
    return tuple(
        Source(str(p.relative_to(plan.source)), plan.task.revision, licence, file_sha256(p))
        for p in plan.files
    )


def _needed_bytes(plan: TaskPlan) -> int:
    media = [side.media for side in (*plan.queries, *plan.candidates)]
    pictures: Iterable[Picture] = (p for m in media for p in m.pictures)
    # Pages of a corpus lie in the scratch file and in the shards at once, hence twice.
    return sum(p.size for p in pictures) + 2 * sum(path.stat().st_size for path in plan.corpus)


def _write(
    plan: TaskPlan,
    root: Path,
    mark: str,
    sources: tuple[Source, ...],
    reader: PictureReader,
    settings: Settings,
) -> dict[str, Any]:
    """Writes both folders; returns the manifest of the root."""

    def write(
        name: str, mark: str, sides: Sequence[QueryPlan | CandidatePlan], sample: _ToSample
    ) -> tuple[list[int], list[str]]:
        # Texts are small: more of them share a shard than pictures.
        heavy = any(side.media.pictures or side.media.problem for side in sides)
        size = _WITH_MEDIA if heavy else _TEXT_ONLY
        folder = ShardFolder(root / name, mark, len(sides), size, sources, sample)
        return write_folder(folder, settings)

    def candidate(number: int) -> Sample:
        members = reader.members(plan.candidates[number].media, "c")
        return candidate_sample(plan, number, members)

    # Candidates first: the lists of queries refer to rows that were really written.
    kept, lost = write(CANDIDATES, mark, plan.candidates, candidate)
    table, mark_of_queries = Table.of(plan, kept), mark
    if table.lost:  # row numbers of the lists depend on who is left
        parts = canonical_json([mark, sorted(table.lost)])
        mark_of_queries = hashlib.sha256(parts.encode()).hexdigest()[:16]

    def query(number: int) -> Sample:
        members = reader.members(plan.queries[number].media, "q")
        return query_sample(plan, number, members, table)

    query_rows, skipped = write(QUERIES, mark_of_queries, plan.queries, query)
    counts = {
        "queries": len(query_rows),
        "candidates": len(kept),
        "list_lengths": plan.list_lengths,
        "shadowed": plan.shadowed,
        "repeated_pages": len(plan.twins),
    }
    return {
        "format_version": FORMAT,
        "benchmark": "MMEB-V2",
        "task": plan.task.name,
        "modality": plan.task.modality,
        "revision": plan.task.revision,
        "fingerprint": mark,
        "counts": counts,
        "sources": [to_json(source) for source in sources],
        "partial": bool(lost + skipped),
        "skipped": lost + skipped,
    }
