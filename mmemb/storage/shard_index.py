"""ShardIndex: the samples of a folder of shards, found by key and read by offset."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TypeVar, final

from mmemb.records.schema import SchemaError, parse_json
from mmemb.storage.files import file_state
from mmemb.storage.manifests import (
    MANIFEST,
    MEDIA_SUFFIXES,
    START_AGAIN,
    IndexEntry,
    Manifest,
    Origin,
    ShardRecord,
    broken,
    check_shard,
    index_path,
    read_manifest,
    read_record,
    sha256_of_all,
    sha256_of_record,
)

_Value = TypeVar("_Value")


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
                raise broken(index_path(folder, shard.name), f"{shard}, as in {MANIFEST}", record)
            records.append(record)

        _check_unique(Path(folder), [entry for record in records for entry in record.entries])
        return cls(Path(folder), manifest, records, states)

    def read(self, entry: IndexEntry, members: Collection[str] | None = None) -> dict[str, bytes]:
        """Reads the bytes of a sample's members; all of them unless `members` names some.

        Raises:
            ValueError: the shard is another one than was opened, or shorter.
        """
        wanted = {k: v for k, v in entry.members.items() if members is None or k in members}
        path = self.folder / entry.shard

        # The state is taken last: bytes that were written over before they were read show in it.
        try:
            with open(path, "rb", buffering=0) as file:
                contents = {
                    k: os.pread(file.fileno(), size, at) for k, (at, size) in wanted.items()
                }
                if file_state(os.fstat(file.fileno())) != self._states[entry.shard]:
                    self._check_unchanged(entry.shard, file)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"Shard {path} was removed while it was being read. {START_AGAIN}"
            ) from None

        for name, data in contents.items():
            if len(data) != wanted[name][1]:
                raise broken(path, f"member {entry.key}.{name} of {wanted[name][1]} bytes", "less")
        return contents

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
        # Kept, since a join and a loader both ask for it and it hashes a whole index.
        if shard not in self._origins:
            record = self.records[shard] if shard else None
            sha256 = sha256_of_record(record) if record else sha256_of_all(self.manifest)
            self._origins[shard] = Origin(self.folder, shard, sha256)
        return self._origins[shard]

    def _check_unchanged(self, shard: str, file: io.FileIO) -> None:
        """Raises ValueError if a shard with other times than at opening has other bytes, too."""
        state, expected = file_state(os.fstat(file.fileno())), self.records[shard].shard.sha256
        if (sha256 := hashlib.file_digest(file, "sha256").hexdigest()) != expected:
            raise ValueError(
                f"Shard {self.folder / shard} was changed while it was being read: it had the "
                f"SHA-256 {expected:.12} when it was opened, and has {sha256:.12} now. "
                f"{START_AGAIN}"
            )

        # Only the times differ, as after a copy or a touch: the next read accepts the new ones.
        self._states[shard] = state

    def of_shard(self, shard: str) -> tuple[IndexEntry, ...]:
        """The samples of one shard, in order."""
        return tuple(entry for entry in self.entries if entry.shard == shard)


def _check_unique(folder: Path, entries: list[IndexEntry]) -> None:
    # A key that occurs twice would hide one of its samples in `by_key`.
    first: dict[str, str] = {}
    for entry in entries:
        if entry.key in first:
            raise ValueError(
                f"Key {entry.key!r} occurs in shard {folder / first[entry.key]} and again in "
                f"{entry.shard}; expected every key once in a folder. Make the folder again."
            )
        first[entry.key] = entry.shard
