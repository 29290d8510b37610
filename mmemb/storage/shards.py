"""Reads folders of shards: manifest, index (key -> shard, offset, size), joins of sidecars.

A shard is a plain WebDataset tar; the index beside it (`NAME.index.json`) makes reading by key one
`pread`, and says what a sidecar's shard was made from. Knows neither what the members mean nor who
reads them.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, TypeVar, final

import msgspec

from mmemb.records.schema import Count, Schema, SchemaError, Sha256, parse_json
from mmemb.storage.files import file_identity, file_sha256, file_state

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
INDEX_SUFFIX = ".index.json"
MEDIA_SUFFIXES = (".webp", ".png", ".jpg", ".jpeg")

SHARD_NAME = re.compile(r"[A-Za-z0-9_-]+\.tar")  # never a path that leaves the folder

_START_AGAIN = (
    "The data were prepared again meanwhile: start the command again, which reads the new ones."
)

_MAKE_AGAIN = "Delete it and run the step that makes this folder again; it fills only the holes."

_verified: dict[tuple[str, int, int, int, int], str] = {}  # path, identity -> sha256, per process


_Value = TypeVar("_Value")
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
    """What a folder holds; `fingerprint` hashes the inputs and settings that made it."""

    format_version: int
    fingerprint: str
    num_samples: Count
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
        raise _broken(path, f"format version {FORMAT_VERSION}", manifest.format_version)
    if (listed := sum(shard.num_samples for shard in manifest.shards)) != manifest.num_samples:
        raise _broken(path, f"{manifest.num_samples} samples in its shards", listed)
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
    origins = tuple(_origin(row, here) for row in data.made_from)
    record = ShardRecord(entry, data.fingerprint, entries, origins, data.command)
    if entry.name != shard or entry.num_samples != len(entries):
        raise _broken(path, f"the index of {shard}", f"{entry.name}, {len(entries)} samples")
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
    found = {}
    for path in sorted(Path(folder).glob(f"*{INDEX_SUFFIX}")):
        name = path.name.removesuffix(INDEX_SUFFIX) + ".tar"
        try:
            # From cheap to dear: the last check hashes the shard.
            record = read_record(folder, name)
            if record.fingerprint != fingerprint:
                continue
            if made_from is not None and not _same(record.made_from, made_from.get(name, ())):
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


def is_complete(folder: Path | str, fingerprint: str) -> bool:
    """Says whether a folder is finished under a fingerprint and every shard and index lies there.

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


@final
class ShardIndex:
    """All samples of a folder, by key, in shard order; keeps no file open, so fork it or pickle."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        records: Sequence[ShardRecord],
        states: Mapping[str, tuple[int, ...]],
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self.records = {record.shard.name: record for record in records}
        self.entries = tuple(entry for record in records for entry in record.entries)
        self.by_key = {entry.key: entry for entry in self.entries}
        self.shard_names = tuple(shard.name for shard in manifest.shards)
        self._states = dict(states)
        self._origins: dict[str, Origin] = {}

    @classmethod
    def open(cls, folder: Path | str, verify: bool = True) -> ShardIndex:
        """Opens a finished folder.

        Args:
            folder: where `manifest.json` lies.
            verify: hash every shard (once per process); else existence and sizes only.
        """
        manifest = read_manifest(folder)
        records: list[ShardRecord] = []
        states: dict[str, tuple[int, ...]] = {}

        for shard in manifest.shards:
            # The state is taken first: a shard that is replaced after this line differs from it.
            path = Path(folder) / shard.name
            states[shard.name] = file_state(path.stat()) if path.is_file() else ()
            check_shard(folder, shard, verify)
            record = read_record(folder, shard.name)
            if record.shard != shard:
                raise _broken(index_path(folder, shard.name), f"{shard}, as in {MANIFEST}", record)
            records.append(record)

        _check_unique(Path(folder), [entry for record in records for entry in record.entries])
        return cls(Path(folder), manifest, records, states)

    def read(self, entry: IndexEntry, members: Collection[str] | None = None) -> dict[str, bytes]:
        """The bytes of a sample's members; all of them unless `members` names some.

        Raises:
            ValueError: the shard is another one than was opened, or shorter.
        """
        wanted = {k: v for k, v in entry.members.items() if members is None or k in members}
        path = self.folder / entry.shard

        # The state is taken last: bytes that were written over before they were read show in it.
        try:
            with open(path, "rb", buffering=0) as file:
                found = {k: os.pread(file.fileno(), size, at) for k, (at, size) in wanted.items()}
                if file_state(os.fstat(file.fileno())) != self._states[entry.shard]:
                    self._check_unchanged(entry.shard, file)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"Shard {path} was removed while it was being read. {_START_AGAIN}"
            ) from None

        for name, data in found.items():
            if len(data) != wanted[name][1]:
                raise _broken(path, f"member {entry.key}.{name} of {wanted[name][1]} bytes", "less")
        return found

    def first_picture(self, entry: IndexEntry, side: str) -> tuple[str, bytes] | None:
        """Name and bytes of a sample's first picture of one side, of a clip its first frame.

        Args:
            entry: the sample.
            side: `q`, `t` or `c`, as the members' names begin.
        """
        names = sorted(n for n in entry.members if n[:1] == side and n.endswith(MEDIA_SUFFIXES))
        return (names[0], self.read(entry, {names[0]})[names[0]]) if names else None

    def read_json(self, entry: IndexEntry, kind: type[_Value], advice: str = "") -> _Value:
        """The JSON of a sample as a value of a type; see `mmemb.records.schema.parse_json`.

        Args:
            entry: of the sample.
            kind: what is expected.
            advice: what to do; "" = to make the folder again.

        Raises:
            SchemaError: the sample has no JSON, or another one.
        """
        where = f"Shard {self.folder / entry.shard}, sample {entry.key}, member json"
        advice = advice or f"Run the step that makes {self.folder} again."
        data = self.read(entry, {"json"})
        if "json" not in data:
            raise SchemaError(f"{where} is missing.", advice)
        return parse_json(data["json"], kind, where, advice)

    def origin(self, shard: str = "") -> Origin:
        """One shard, or with "" the whole folder, as something that a sidecar is made from."""
        if shard not in self._origins:
            record = self.records[shard] if shard else None
            sha256 = _sha256_of_record(record) if record else _sha256_of_all(self.manifest)
            self._origins[shard] = Origin(self.folder, shard, sha256)
        return self._origins[shard]

    def _check_unchanged(self, shard: str, file: io.FileIO) -> None:
        """Raises ValueError if a shard with other times than at opening has other bytes, too."""
        state, expected = file_state(os.fstat(file.fileno())), self.records[shard].shard.sha256
        if (found := hashlib.file_digest(file, "sha256").hexdigest()) != expected:
            raise ValueError(
                f"Shard {self.folder / shard} was changed while it was being read: it had the "
                f"SHA-256 {expected:.12} when it was opened, and has {found:.12} now. "
                f"{_START_AGAIN}"
            )
        self._states[shard] = state

    def of_shard(self, shard: str) -> tuple[IndexEntry, ...]:
        """The samples of one shard, in order."""
        return tuple(entry for entry in self.entries if entry.shard == shard)


def check_join(source: ShardIndex, sidecar: ShardIndex) -> set[str]:
    """Checks that a sidecar was made from its source: shard names, keys, order and bytes.

    What else a covered shard was made from, such as the candidates beside the queries, is compared
    where it lies as seen from the source.

    Returns:
        Names of the source's shards that the sidecar covers; it need not cover all.

    Raises:
        ValueError: a covered shard has other keys, was made from other bytes, or has no record of
            them; the error names both folders and the command that makes the sidecar again.
    """
    ours, theirs = _keys_by_shard(source), _keys_by_shard(sidecar)
    covered = set(ours) & set(theirs)
    compared: set[tuple[Path, str]] = set()

    for shard in sorted(covered):
        left, right = ours[shard], theirs[shard]
        if left != right:
            pairs = enumerate(zip_longest(left, right))
            at = next(i for i, (a, b) in pairs if a != b)
            a, b = (repr(keys[at]) if at < len(keys) else "no sample" for keys in (left, right))
            raise ValueError(
                f"Sidecar shard {sidecar.folder / shard} does not belong to "
                f"{source.folder / shard}: expected key {a} at row {at}, found {b}. It was made "
                f"from other data. {_again(sidecar, shard, source)}"
            )
        origin = _check_made_from(source, sidecar, shard)
        compared |= _check_folders(source, sidecar, shard, origin, compared)
    return covered


def _check_made_from(source: ShardIndex, sidecar: ShardIndex, shard: str) -> Origin:
    """The origin of a sidecar's shard that is the source's shard of this name."""
    wanted = source.origin(shard)
    origins = [origin for origin in sidecar.records[shard].made_from if origin.shard == shard]
    for origin in origins:
        if origin.sha256 == wanted.sha256:
            return origin

    if not origins:
        raise ValueError(
            f"Sidecar shard {sidecar.folder / shard} has no record of what it was made from, so it "
            f"cannot be joined with {source.folder / shard}: it is older than this check, or of "
            f"another tool. {_again(sidecar, shard, source)}"
        )
    was = ", ".join(f"{origin.folder / shard} (hash {origin.sha256:.12})" for origin in origins)
    raise ValueError(
        f"Sidecar shard {sidecar.folder / shard} was not made from {source.folder / shard} "
        f"(hash {wanted.sha256:.12}), but from {was}. The keys are equal, the content is not. "
        f"{_again(sidecar, shard, source)}"
    )


def _check_folders(
    source: ShardIndex,
    sidecar: ShardIndex,
    shard: str,
    own: Origin,
    compared: Collection[tuple[Path, str]],
) -> set[tuple[Path, str]]:
    """Compares the whole folders that a sidecar's shard was made from; returns them with hashes.

    Args:
        source: of the join.
        sidecar: of the join.
        shard: name of the shard in both.
        own: the source's shard, as the sidecar's shard records it.
        compared: folders that need no second look.
    """
    found: set[tuple[Path, str]] = set()
    for origin in sidecar.records[shard].made_from:
        if origin.shard:
            continue

        # A data root may have been moved: what lay beside the source then lies beside it now.
        way = os.path.relpath(origin.folder, own.folder)
        present = Path(os.path.normpath(source.folder.absolute() / way))
        if (present, origin.sha256) in compared or not present.is_dir():
            continue
        if (sha256 := _sha256_of_all(read_manifest(present))) != origin.sha256:
            raise ValueError(
                f"Sidecar shard {sidecar.folder / shard} was also made from {origin.folder} (hash "
                f"{origin.sha256:.12}), but {present} holds other data now (hash {sha256:.12}). "
                f"{_again(sidecar, shard, source)}"
            )
        found.add((present, origin.sha256))
    return found


def _again(sidecar: ShardIndex, shard: str, source: ShardIndex) -> str:
    """The advice that ends an error about a join."""
    command = sidecar.records[shard].command
    how = f" with `{command}`" if command else f" from {source.folder}"
    return f"Make {sidecar.folder} again{how}."


def _same(left: Collection[Origin], right: Collection[Origin]) -> bool:
    """Compares bytes, wherever they lie; a shard that names no origin is equal to none."""
    contents = [{(origin.shard, origin.sha256) for origin in side} for side in (left, right)]
    return bool(contents[0]) and contents[0] == contents[1]


def _sha256_of_record(record: ShardRecord) -> str:
    # The halves of the pairs, for instance, stand in the index alone.
    rows = [[entry.key, sorted(entry.meta.items())] for entry in record.entries]
    return hashlib.sha256(
        json.dumps([record.shard.sha256, rows], allow_nan=False).encode()
    ).hexdigest()


def _sha256_of_all(manifest: Manifest) -> str:
    rows = [[shard.name, shard.sha256] for shard in manifest.shards]
    return hashlib.sha256(json.dumps(rows, allow_nan=False).encode()).hexdigest()


def _keys_by_shard(index: ShardIndex) -> dict[str, list[str]]:
    keys: dict[str, list[str]] = {name: [] for name in index.shard_names}
    for entry in index.entries:
        keys[entry.shard].append(entry.key)
    return keys


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
    if any(at + size > shard.num_bytes for at, size in row.members.values()):
        raise SchemaError(f"{where}: sample {row.key!r} lies outside its shard.", _MAKE_AGAIN)
    if lost := sorted(row.media.keys() - row.members.keys()):
        problem = f"{where}: sample {row.key!r} has no member {lost[0]!r}, whose hash is stated."
        raise SchemaError(problem, _MAKE_AGAIN)
    pictures = {name for name in row.members if f".{name}".endswith(MEDIA_SUFFIXES)}
    if unknown := sorted(pictures - row.media.keys()):
        problem = f"{where}: sample {row.key!r} has no hash of its member {unknown[0]!r}."
        raise SchemaError(problem, _MAKE_AGAIN)
    return IndexEntry(row.key, shard.name, row.members, Meta(row.meta), row.media)


def _origin(row: _OriginJson, folder: Path) -> Origin:
    """An origin as the index in `folder` names it: seen from there, so that both may be moved."""
    return Origin(Path(os.path.normpath(folder / row.folder)), row.shard, row.sha256)


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
        f"{path} cannot be trusted: expected {expected}; found {found!s:.300}. {_MAKE_AGAIN}"
    )
