"""Reads folders of shards: manifest, index (key -> shard, offset, size), joins of sidecars.

A shard is a plain WebDataset tar; the index beside it (`NAME.index.json`) makes reading by key one
`pread`, and records what a sidecar's shard was made from. The members' meaning is their reader's.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, final

import msgspec

from mmemb.records.old_names import FIELDS, FIRST_FIELDS, MEMBERS
from mmemb.records.schema import Count, Schema, SchemaError, Sha256, parse_json
from mmemb.storage.files import file_identity, file_sha256

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
INDEX_SUFFIX = ".index.json"
MEDIA_SUFFIXES = (".webp", ".png", ".jpg", ".jpeg")

SHARD_NAME = re.compile(r"[A-Za-z0-9_-]+\.tar")  # never a path that leaves the folder

START_AGAIN = (
    "The data were prepared again meanwhile: start the command again, which reads the new ones."
)

_MAKE_AGAIN = "Delete it and run the step that makes this folder again; it fills only the holes."

_verified: dict[tuple[str, int, int, int, int], str] = {}  # path, identity -> sha256, per process


_ShardName = Annotated[str, msgspec.Meta(pattern=rf"^{SHARD_NAME.pattern}\Z")]


@final
class Source(Schema):
    """A package that the content comes from."""

    package: str
    version: str
    licence: str
    sha256: str


@final
class ShardEntry(Schema):
    """One shard of a folder, e.g. `questions-000000.tar`."""

    name: _ShardName
    sha256: Sha256
    num_bytes: Count
    num_samples: Count


@final
class Manifest(Schema):
    """Content of a folder; `fingerprint` hashes the inputs and settings that made it."""

    format_version: int
    fingerprint: str
    num_samples: Count
    shards: tuple[ShardEntry, ...]
    sources: tuple[Source, ...] = ()


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """Place of one sample in its shard.

    Attributes:
        members: extension (`json`, `q0.webp`) -> (offset, size) in the shard.
        meta: what can be filtered by without reading the sample (split, task, source, ...).
        media: extension -> SHA-256 (hex) of the bytes, for image members.
    """

    key: str
    shard: str
    members: Mapping[str, tuple[int, int]]
    meta: Mapping[str, str] = field(default_factory=dict)
    media: Mapping[str, str] = field(default_factory=dict)

    @property
    def own_id(self) -> str:
        """What the user calls the sample, if that could not be its key; else the key."""
        return self.meta.get("id", self.key)


@final
class Meta(dict[str, str]):
    """Fields of a sample that its index repeats; asking for any other is one clear error."""

    def __missing__(self, name: str) -> str:
        raise ValueError(
            f"An index entry lacks {name!r} in its meta; it has {sorted(self)}. The folder was not "
            "made by this project, or its index was changed: run the step that makes it again."
        )


@dataclass(frozen=True, slots=True)
class Origin:
    """A shard, or a whole folder of shards, that a sidecar's shard was made from.

    Attributes:
        folder: where it lay.
        shard: its name; "" stands for all shards of the folder.
        sha256: of the shard's bytes and of what its index says of the samples; of a whole folder
            of its shards' hashes.
    """

    folder: Path
    shard: str
    sha256: str


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """The content of one index file.

    Attributes:
        made_from: empty where the shard is no sidecar's.
        command: makes the shard again; "" where it is not known.
    """

    shard: ShardEntry
    fingerprint: str
    entries: tuple[IndexEntry, ...]
    made_from: tuple[Origin, ...] = ()
    command: str = ""


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

    manifest = parse_json(path.read_bytes(), Manifest, f"{path} cannot be trusted", _MAKE_AGAIN)
    if manifest.format_version != FORMAT_VERSION:
        raise broken(path, f"format version {FORMAT_VERSION}", manifest.format_version)

    # A list of shards that was cut by hand would otherwise pass as a smaller folder.
    if (listed := sum(shard.num_samples for shard in manifest.shards)) != manifest.num_samples:
        raise broken(path, f"{manifest.num_samples} samples in its shards", listed)
    return manifest


def read_record(folder: Path | str, shard: str) -> ShardRecord:
    """Reads the index file of one shard."""
    path = index_path(folder, shard)
    if not path.is_file():
        raise FileNotFoundError(
            f"Shard {Path(folder) / shard} has no index: expected {path.name} beside it. Run the "
            f"step that makes this folder again; it fills only the holes."
        )

    where = f"{path} cannot be trusted"
    data = parse_json(path.read_bytes(), _IndexJson, where, _MAKE_AGAIN)

    entry, here = data.shard, path.parent.resolve()
    entries = tuple(_index_entry(row, entry, where) for row in data.entries)
    origins = tuple(origin_of(row, here) for row in data.made_from)

    record = ShardRecord(entry, data.fingerprint, entries, origins, data.command)

    # An index that was copied under another name describes another shard.
    if entry.name != shard or entry.num_samples != len(entries):
        raise broken(path, f"the index of {shard}", f"{entry.name}, {len(entries)} samples")
    return record


def existing_shards(
    folder: Path | str,
    fingerprint: str,
    made_from: Mapping[str, Collection[Origin]] | None = None,
) -> dict[str, ShardEntry]:
    """The shards that a rerun may trust: whole, as recorded, and made with `fingerprint`.

    Everything else (other settings, interrupted, truncated, changed) is a hole to fill.

    Args:
        folder: where they lie.
        fingerprint: of settings and inputs.
        made_from: of a sidecar, what each shard would be made from now; one that was made from
            other bytes, or has no record of them, is a hole.
    """
    shards = {}
    for path in sorted(Path(folder).glob(f"*{INDEX_SUFFIX}")):
        name = path.name.removesuffix(INDEX_SUFFIX) + ".tar"
        try:
            # From cheap to dear: the last check hashes the shard.
            record = read_record(folder, name)
            if record.fingerprint != fingerprint:
                continue
            if made_from is not None and not same_origins(
                record.made_from, made_from.get(name, ())
            ):
                continue
            check_shard(folder, record.shard)
        except (ValueError, OSError):
            continue

        shards[name] = record.shard
    return shards


def check_shard(folder: Path | str, expected: ShardEntry, verify: bool = True) -> None:
    """Raises one clear error if a shard is missing, truncated or changed."""
    path = Path(folder) / expected.name
    if not path.is_file():
        raise FileNotFoundError(
            f"Shard {path} is missing although its folder's manifest or index lists it. Run the "
            f"step that makes this folder again; it fills only the holes."
        )

    # The size comes first: it finds a truncated shard without reading it.
    if (size := path.stat().st_size) != expected.num_bytes:
        raise broken(path, f"{expected.num_bytes} bytes (truncated or changed)", f"{size} bytes")
    if verify and (sha256 := _hash_file(path)) != expected.sha256:
        raise broken(path, f"SHA-256 {expected.sha256}, as recorded", sha256)


def is_complete(folder: Path | str, fingerprint: str) -> bool:
    """Tells whether a folder is finished under a fingerprint, with every shard and index there.

    Looks at names and sizes alone: readers hash what they open.
    """
    try:
        manifest = read_manifest(folder)
        for shard in manifest.shards:
            check_shard(folder, shard, verify=False)
    except (ValueError, OSError):
        return False

    indexed = all(index_path(folder, shard.name).is_file() for shard in manifest.shards)
    return manifest.fingerprint == fingerprint and indexed


def sha256_of_record(record: ShardRecord) -> str:
    # The folds of the pairs, for instance, stand in the index alone. Names are those of the
    # first version, so that sidecars of older versions stay valid.
    rows = [
        [entry.key, sorted((FIRST_FIELDS.get(name, name), v) for name, v in entry.meta.items())]
        for entry in record.entries
    ]
    return hashlib.sha256(
        json.dumps([record.shard.sha256, rows], allow_nan=False).encode()
    ).hexdigest()


def sha256_of_all(manifest: Manifest) -> str:
    rows = [[shard.name, shard.sha256] for shard in manifest.shards]
    return hashlib.sha256(json.dumps(rows, allow_nan=False).encode()).hexdigest()


@final
class _SampleJson(Schema):
    """A sample as an index file describes it; see `IndexEntry`."""

    key: str
    members: dict[str, tuple[Count, Count]]
    meta: dict[str, str]
    media: dict[str, Sha256]


@final
class _OriginJson(Schema):
    """An `Origin`, its folder seen from the index's."""

    folder: str
    shard: Annotated[str, msgspec.Meta(pattern=rf"^({SHARD_NAME.pattern})?\Z")]
    sha256: Sha256


@final
class _IndexJson(Schema):
    """See `ShardRecord`."""

    shard: ShardEntry
    fingerprint: str
    entries: tuple[_SampleJson, ...]
    made_from: tuple[_OriginJson, ...] = ()
    command: str = ""


def _index_entry(row: _SampleJson, shard: ShardEntry, where: str) -> IndexEntry:
    # Reading behind the end of a file gives fewer bytes and no error.
    if any(at + size > shard.num_bytes for at, size in row.members.values()):
        raise SchemaError(f"{where}: sample {row.key!r} lies outside its shard.", _MAKE_AGAIN)

    if lost := sorted(row.media.keys() - row.members.keys()):
        problem = f"{where}: sample {row.key!r} has no member {lost[0]!r}, whose hash is stated."
        raise SchemaError(problem, _MAKE_AGAIN)

    # Cached features are found by these hashes, so no picture may lack one.
    pictures = {name for name in row.members if f".{name}".endswith(MEDIA_SUFFIXES)}
    if unknown := sorted(pictures - row.media.keys()):
        problem = f"{where}: sample {row.key!r} has no hash of its member {unknown[0]!r}."
        raise SchemaError(problem, _MAKE_AGAIN)

    # Indices of older versions have other names.
    members = {MEMBERS.get(name, name): place for name, place in row.members.items()}
    meta = Meta({FIELDS.get(name, name): value for name, value in row.meta.items()})
    return IndexEntry(row.key, shard.name, members, meta, row.media)


def origin_of(row: _OriginJson, folder: Path) -> Origin:
    """An origin as the index in `folder` names it: seen from there, so that both may be moved."""
    return Origin(Path(os.path.normpath(folder / row.folder)), row.shard, row.sha256)


def _hash_file(path: Path) -> str:
    # A shard that is opened many times is hashed once, for as long as its identity is the same.
    identity = (str(path.resolve()), *file_identity(path))
    if identity not in _verified:
        _verified[identity] = file_sha256(path)
    return _verified[identity]


def broken(path: Path, expected: str, actual: object) -> ValueError:
    return ValueError(
        f"{path} cannot be trusted: expected {expected}; found {actual!s:.300}. {_MAKE_AGAIN}"
    )


def same_origins(left: Collection[Origin], right: Collection[Origin]) -> bool:
    """Compares bytes, wherever they lie; a shard that names no origin is equal to none."""
    # As sets: neither the order of the origins nor the folder that they lie in matters.
    contents = [{(origin.shard, origin.sha256) for origin in side} for side in (left, right)]
    return bool(contents[0]) and contents[0] == contents[1]
