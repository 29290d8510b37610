"""Reads folders of shards: manifest, index (key -> shard, offset, size), joins of sidecars.

A shard is a plain WebDataset tar; the index beside it (`NAME.index.json`) makes reading by key one
`pread`. Knows neither what the members mean nor who reads them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, final

from mmemb.files import file_identity, file_sha256

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
INDEX_SUFFIX = ".index.json"
MEDIA_SUFFIXES = (".webp", ".png", ".jpg", ".jpeg")

SHARD_NAME = re.compile(r"[A-Za-z0-9_-]+\.tar")  # never a path that leaves the folder

_verified: dict[tuple[str, int, int, int, int], str] = {}  # path, identity -> sha256, per process


@dataclass(frozen=True, slots=True)
class Source:
    """A package that the content comes from."""

    package: str
    version: str
    licence: str
    sha256: str


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """One shard of a folder, e.g. `questions-000000.tar`."""

    name: str
    sha256: str
    num_bytes: int
    num_samples: int

    def __post_init__(self) -> None:
        if not SHARD_NAME.fullmatch(self.name):
            raise ValueError(f"shard name {self.name!r}")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a folder holds; `fingerprint` hashes the inputs and settings that made it."""

    format_version: int
    fingerprint: str
    num_samples: int
    shards: tuple[ShardEntry, ...]
    sources: tuple[Source, ...] = ()


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """Where one sample lies.

    Attributes:
        members: extension (`json`, `q0.webp`) -> (offset, size) in the shard.
        meta: what can be filtered by without reading the sample (part, task, group, ...).
        media: extension -> SHA-256 (hex) of the bytes, for image members.
    """

    key: str
    shard: str
    members: Mapping[str, tuple[int, int]]
    meta: Mapping[str, str] = field(default_factory=dict)
    media: Mapping[str, str] = field(default_factory=dict)


@final
class Meta(dict[str, str]):
    """What an index says of a sample; asking for what it does not say is one clear error."""

    def __missing__(self, name: str) -> str:
        raise ValueError(
            f"An index entry lacks {name!r} in its meta; it has {sorted(self)}. The folder was not "
            "made by this project, or its index was changed: run the step that makes it again."
        )


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """The content of one index file."""

    shard: ShardEntry
    fingerprint: str
    entries: tuple[IndexEntry, ...]


def index_path(folder: Path | str, shard: str) -> Path:
    """The index file of a shard."""
    return Path(folder) / (shard.removesuffix(".tar") + INDEX_SUFFIX)


def read_manifest(folder: Path | str) -> Manifest:
    """Reads `manifest.json` of a folder of shards.

    Raises:
        FileNotFoundError: the folder or its manifest does not exist.
        ValueError: the manifest is broken or of another format version.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        what = "is not finished" if path.parent.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"The shard folder {path.parent} {what}: expected {path.name} in it. "
            f"Run the step that makes this folder; a rerun keeps the shards that are whole."
        )
    try:
        data = json.loads(path.read_bytes())
        shards = tuple(ShardEntry(**shard) for shard in data.pop("shards"))
        sources = tuple(Source(**source) for source in data.pop("sources"))
        manifest = Manifest(**data, shards=shards, sources=sources)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _broken(path, "a manifest as `mmemb.shard_writer` writes it", error) from None
    if manifest.format_version != FORMAT_VERSION:
        raise _broken(path, f"format version {FORMAT_VERSION}", manifest.format_version)
    return manifest


def read_record(folder: Path | str, shard: str) -> ShardRecord:
    """Reads the index file of one shard."""
    path = index_path(folder, shard)
    if not path.is_file():
        raise FileNotFoundError(
            f"Shard {Path(folder) / shard} has no index: expected {path.name} beside it. Run the "
            f"step that makes this folder again; it fills only the holes."
        )
    try:
        data = json.loads(path.read_bytes())
        entry = ShardEntry(**data["shard"])
        entries = tuple(_index_entry(row, entry) for row in data["entries"])
        record = ShardRecord(entry, data["fingerprint"], entries)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _broken(path, "an index as `mmemb.shard_writer` writes it", error) from None
    if entry.name != shard or entry.num_samples != len(entries):
        raise _broken(path, f"the index of {shard}", f"{entry.name}, {len(entries)} samples")
    return record


def existing_shards(folder: Path | str, fingerprint: str) -> dict[str, ShardEntry]:
    """The shards that a rerun may trust: whole, as recorded, and made with `fingerprint`.

    Everything else (other settings, interrupted, truncated, changed) is a hole to fill.
    """
    found = {}
    for path in sorted(Path(folder).glob(f"*{INDEX_SUFFIX}")):
        name = path.name.removesuffix(INDEX_SUFFIX) + ".tar"
        try:
            record = read_record(folder, name)
            if record.fingerprint != fingerprint:
                continue
            check_shard(folder, record.shard)
        except (ValueError, OSError):
            continue
        found[name] = record.shard
    return found


def check_shard(folder: Path | str, expected: ShardEntry, verify: bool = True) -> None:
    """Raises one clear error if a shard is missing, truncated or changed."""
    path = Path(folder) / expected.name
    if not path.is_file():
        raise FileNotFoundError(
            f"Shard {path} is missing although its folder's manifest or index lists it. Run the "
            f"step that makes this folder again; it fills only the holes."
        )
    if (size := path.stat().st_size) != expected.num_bytes:
        raise _broken(path, f"{expected.num_bytes} bytes (truncated or changed)", f"{size} bytes")
    if verify and (found := _hash_file(path)) != expected.sha256:
        raise _broken(path, f"SHA-256 {expected.sha256}, as recorded", found)


@final
class ShardIndex:
    """All samples of a folder, by key, in shard order; keeps no file open, so fork it or pickle."""

    def __init__(self, folder: Path, manifest: Manifest, entries: tuple[IndexEntry, ...]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.entries = entries
        self.by_key = {entry.key: entry for entry in entries}
        self.shard_names = tuple(shard.name for shard in manifest.shards)

    @classmethod
    def open(cls, folder: Path | str, verify: bool = True) -> ShardIndex:
        """Opens a finished folder.

        Args:
            folder: where `manifest.json` lies.
            verify: hash every shard (once per process); else existence and sizes only.
        """
        manifest = read_manifest(folder)
        entries: list[IndexEntry] = []
        for shard in manifest.shards:
            check_shard(folder, shard, verify)
            record = read_record(folder, shard.name)
            if record.shard != shard:
                raise _broken(index_path(folder, shard.name), f"{shard}, as in {MANIFEST}", record)
            entries += record.entries
        _check_unique(Path(folder), entries)
        return cls(Path(folder), manifest, tuple(entries))

    def read(self, entry: IndexEntry, members: Collection[str] | None = None) -> dict[str, bytes]:
        """The bytes of a sample's members; all of them unless `members` names some."""
        wanted = {k: v for k, v in entry.members.items() if members is None or k in members}
        path = self.folder / entry.shard
        with open(path, "rb", buffering=0) as file:
            found = {k: os.pread(file.fileno(), size, at) for k, (at, size) in wanted.items()}
        for name, data in found.items():
            if len(data) != wanted[name][1]:
                raise _broken(path, f"member {entry.key}.{name} of {wanted[name][1]} bytes", "less")
        return found

    def of_shard(self, shard: str) -> tuple[IndexEntry, ...]:
        """The samples of one shard, in order."""
        return tuple(entry for entry in self.entries if entry.shard == shard)


def check_join(source: ShardIndex, sidecar: ShardIndex) -> set[str]:
    """Checks that a sidecar belongs to its source, by shard name, keys and order.

    Returns:
        Names of the source's shards that the sidecar covers; it need not cover all.

    Raises:
        ValueError: a covered shard has other keys; names both shards and the first key.
    """
    ours, theirs = _keys_by_shard(source), _keys_by_shard(sidecar)
    covered = set(ours) & set(theirs)
    for shard in sorted(covered):
        left, right = ours[shard], theirs[shard]
        if left == right:
            continue
        pairs = enumerate(zip_longest(left, right))
        at = next(i for i, (a, b) in pairs if a != b)
        a, b = (repr(keys[at]) if at < len(keys) else "no sample" for keys in (left, right))
        raise ValueError(
            f"Sidecar shard {sidecar.folder / shard} does not belong to {source.folder / shard}: "
            f"expected key {a} at row {at}, found {b}. It was made from other data: make the "
            f"sidecar folder again from {source.folder}."
        )
    return covered


def _keys_by_shard(index: ShardIndex) -> dict[str, list[str]]:
    keys: dict[str, list[str]] = {name: [] for name in index.shard_names}
    for entry in index.entries:
        keys[entry.shard].append(entry.key)
    return keys


def _index_entry(row: Mapping[str, Any], shard: ShardEntry) -> IndexEntry:
    members = {str(k): (int(at), int(size)) for k, (at, size) in row["members"].items()}
    if any(at < 0 or size < 0 or at + size > shard.num_bytes for at, size in members.values()):
        raise ValueError(f"sample {row['key']!r} lies outside its shard")
    return IndexEntry(str(row["key"]), shard.name, members, Meta(row["meta"]), dict(row["media"]))


def _check_unique(folder: Path, entries: list[IndexEntry]) -> None:
    first: dict[str, str] = {}
    for entry in entries:
        if entry.key in first:
            raise ValueError(
                f"Key {entry.key!r} occurs in shard {folder / first[entry.key]} and again in "
                f"{entry.shard}; expected every key once in a folder. Make the folder again."
            )
        first[entry.key] = entry.shard


def _hash_file(path: Path) -> str:
    known = (str(path.resolve()), *file_identity(path))
    if known not in _verified:
        _verified[known] = file_sha256(path)
    return _verified[known]


def _broken(path: Path, expected: str, found: object) -> ValueError:
    return ValueError(
        f"{path} cannot be trusted: expected {expected}; found {found!s:.300}. Delete it and run "
        f"the step that makes this folder again; it fills only the holes."
    )
