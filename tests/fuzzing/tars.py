"""Tars without an index."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Sequence
from random import Random
from typing import ClassVar, final

from datamodules.archives import ArchiveLimits, TarMember, read_tar
from datamodules.samples import SampleReader, rows_of
from datamodules.tar_samples import ForeignMembers, samples_of
from datamodules.unindexed import ReplayStream
from mmemb.storage.shard_index import ShardIndex
from tests.fixtures.tiny_data import write_tiny
from tests.fuzzing.kind import Kind
from tests.fuzzing.mutations import STRANGE_TEXTS, mutate_bytes, mutate_json
from tests.fuzzing.texts import check_texts

LIMITS = ArchiveLimits(member_mib=1, sample_mib=2, num_members=16, ratio=200)
FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
_TYPES = (tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE,
          tarfile.GNUTYPE_SPARSE, tarfile.CONTTYPE, b"V", b"Z")  # fmt: skip


@final
class Tars(Kind):
    """A tar of pairs, plain or gzip."""

    name: ClassVar[str] = "tars"

    def make_seeds(self) -> Sequence[bytes]:
        index = ShardIndex.open(write_tiny(self.folder / "data") / "pairs/plain")
        members = [
            (f"{row.entry.key}.{name}", data)
            for row in rows_of(index)[:3]
            for name, data in sorted(index.read(row.entry).items())
        ]
        plain = [_pack(members, kind) for kind in FORMATS]
        return [*plain, gzip.compress(plain[0], mtime=0)]

    def mutate(self, data: bytes, random: Random) -> bytes:
        if random.random() < 0.5:
            return mutate_bytes(data, random, self.seeds)
        try:
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                infos = tar.getmembers()[:20]
                found = [
                    (info, tar.extractfile(info).read() if info.isreg() else b"") for info in infos
                ]  # type: ignore[union-attr]
        except Exception:  # it was changed before
            return mutate_bytes(data, random, self.seeds)
        if not found:
            return mutate_bytes(data, random, self.seeds)
        return _repacked(found, random) or mutate_bytes(data, random, self.seeds)

    def marks(self, data: bytes) -> Sequence[str]:
        return ("the.tar",)

    def read(self, data: bytes) -> None:
        path = self.folder / "the.tar"
        path.write_bytes(data)
        with open(path, "rb") as file:
            members = list(read_tar(file, f"Tar {path}", LIMITS))
        _check_members(members, data)
        samples = list(samples_of(members, f"Tar {path}", LIMITS, ForeignMembers()))
        num_files = sum(1 for member in members if member.kind == "file")
        assert sum(len(sample.data) for sample in samples) <= num_files + len(members)

        reader = SampleReader()
        stream = ReplayStream([str(path)], 1, 0, (0, 1), reader, "raise", LIMITS)
        keys = []
        for _ in samples or [None]:
            batch = next(stream)
            keys += batch.keys
            check_texts(side.text for side in (*batch.queries, *batch.targets))
            check_texts((*batch.sources, *stream.facts))
        assert sorted(keys) == sorted(sample.key for sample in samples), "silently other rows"


def _check_members(members: Sequence[TarMember], data: bytes) -> None:
    """Python's own reader, which stops early at some faults, sees nothing else."""
    with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8") as tar:
        theirs = [info for info in tar if info.isreg()]
        ours = [member for member in members if member.kind == "file"]
        assert len(theirs) == len(ours), "silently fewer members"
        for info, member in zip(theirs, ours, strict=True):
            file = tar.extractfile(info)
            assert file is not None
            assert file.read() == member.data, info.name


def _pack(members: Sequence[tuple[str, bytes]], kind: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _repacked(found: list[tuple[tarfile.TarInfo, bytes]], random: Random) -> bytes:
    """A tar with one member more, less, elsewhere, or another one; nothing if it cannot be made."""
    at = random.randrange(len(found))
    info, content = found[at]
    match random.randrange(7):
        case 0:
            found.pop(at)
        case 1:
            found.insert(random.randrange(len(found)), found[at])
        case 2:
            info.name = random.choice((*STRANGE_TEXTS, "._" + info.name, "t0.gif", "k.t0.png"))
        case 3:
            info.type = random.choice(_TYPES)
            info.linkname = random.choice(("", "/etc/passwd", "../x", info.name))
        case 4:
            name = random.choice(("path", "size", "GNU.sparse.size", "hdrcharset", "a"))
            info.pax_headers = {name: random.choice(STRANGE_TEXTS)}
        case 5 if info.name.endswith("json"):
            found[at] = (info, mutate_json(content, random))
        case _:
            found[at] = (info, mutate_bytes(content, random))
    buffer = io.BytesIO()
    try:
        with tarfile.open(fileobj=buffer, mode="w", format=random.choice(FORMATS)) as tar:
            for each, data in found:
                each.size = len(data)
                tar.addfile(each, io.BytesIO(data))
    except Exception:  # not every header can be written
        return b""
    return buffer.getvalue()
