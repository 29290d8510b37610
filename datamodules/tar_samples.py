"""Members of a tar without an index, grouped into samples: those that follow each other by key."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import final

from datamodules.archives import BLOCK, ArchiveError, ArchiveLimits, TarMember
from mmemb.records.text import printable

_NAME = re.compile(r"((?:.*/)?[^/.]+)\.([^/]*)", re.DOTALL)
_FOREIGN = re.compile(
    r"(?:^|/)(?:\.(?!\.?/)[^/]+|__MACOSX|PaxHeaders?[^/]*|__[^/]*__|[Tt]humbs\.db|[Dd]esktop\.ini"
    r"|[^/]*:Zone\.Identifier|@eaDir)(?:/|$)"
)
"""Hidden files, what macOS (`._x`, `__MACOSX`), Windows and NAS servers add, pax headers that were
unpacked as files, and `__x__`, which WebDataset keeps for itself."""


@final
class SplitSampleError(ValueError):
    """A tar that is not sorted by key: a sample comes back after it has been handed out."""


@dataclass(frozen=True, slots=True)
class TarSample:
    """The files of one key; `problem` names a fault of them, or is empty."""

    key: str
    data: dict[str, bytes]
    problem: str = ""

    @property
    def num_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(map(len, self.data.values()))


@final
class ForeignMembers:
    """Counts members that belong to no sample, or to none of its sides."""

    def __init__(self) -> None:
        self.count = 0
        self.first = ""

    def add(self, name: str) -> None:
        """Counts one of them, and keeps the name of the first."""
        self.first = self.first or name
        self.count += 1


def samples_of(
    members: Iterable[TarMember], where: str, limits: ArchiveLimits, foreign: ForeignMembers
) -> Iterator[TarSample]:
    """Groups members as WebDataset does: the key ends at the first dot of the file's name.

    Args:
        members: members of one tar, in order.
        where: names the tar in errors.
        limits: on the members and bytes of a sample.
        foreign: counts the members that are no sample's.

    Raises:
        ArchiveError: a sample is beyond the limits; or one of `members`.
        SplitSampleError: a key comes back, so that a sample was handed out without all members.
    """
    # Hashes, since names may be long and a tar may have millions of samples.
    seen: set[int] = set()

    for key, group in groupby(named_members(members, foreign), key=itemgetter(0)):
        if hash(key) in seen:
            raise SplitSampleError(
                f"{where}: sample {printable(key)} stands at two places, so that neither is "
                "whole. Pack the tar again, sorted by key, such as by `tar --sort=name`."
            )
        seen.add(hash(key))

        yield _sample(key, group, where, limits)


def named_members(
    members: Iterable[TarMember], foreign: ForeignMembers
) -> Iterator[tuple[str, str, TarMember]]:
    """Yields members with their key and extension; those of no sample are counted."""
    for member in members:
        # Tars made by `tar DIR` hold the folders, too, which are no content.
        if member.kind == "folder":
            continue

        match = _NAME.fullmatch(member.name)
        if match is None or _FOREIGN.search(member.name):
            foreign.add(member.name)
        else:
            yield match[1], match[2].lower(), member


def _sample(
    key: str, group: Iterable[tuple[str, str, TarMember]], where: str, limits: ArchiveLimits
) -> TarSample:
    data: dict[str, bytes] = {}
    problem, size = "", 0

    for number, (_, name, member) in enumerate(group, 1):
        # A header counts as well, so that millions of empty members reach the limit.
        size += BLOCK + len(member.data)
        if number > limits.num_members or size > limits.sample_mib << 20:
            raise ArchiveError(
                f"{where}: sample {printable(key)} has more than {limits.num_members} members or "
                f"{limits.sample_mib} MiB (the limits).",
                "Repair it, or raise `archive_limits`.",
            )

        # A link stands for content that is not followed, so the sample lacks it.
        if member.kind != "file":
            problem = f"member {printable(name)} is a {member.kind}, and no file"
        elif name in data:
            problem = f"member {printable(name)} is there twice"
        data[name] = member.data

    return TarSample(key, data, problem)
