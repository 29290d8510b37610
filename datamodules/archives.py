"""Members of archives from elsewhere: read whole and in bounds, or one fault that names a place.

Nothing is unpacked to a path and no link is followed. Headers are parsed by Python's `tarfile`;
what its reader takes for an end of the data (a header that does not read, a file that stops at a
member's border) is a fault here. Does not depend on samples.
"""

from __future__ import annotations

import gzip
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, final

from mmemb.records.text import quote

Kind = Literal["file", "folder", "link", "device"]

BLOCK = tarfile.BLOCKSIZE
MAX_HEADERS = 8
"""Most headers that describe one member; usual writers need two."""

MAX_HEADER_BYTES = 64 << 10
"""Largest such header; it may hold attributes beside a name."""

MAX_NAME = 4096
"""Most letters of a name: no file system has longer paths."""

MAX_PADDING = 1 << 20
"""Most bytes of zeros behind the end of a tar: GNU tar pads to 10,240, tapes may have more."""

FREE_BYTES = 16 << 20
"""Bytes that any archive may hold, whatever its ratio: small texts compress well."""

_KINDS: dict[bytes, Kind] = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.CONTTYPE: "file",
    tarfile.DIRTYPE: "folder",
    tarfile.LNKTYPE: "link",
    tarfile.SYMTYPE: "link",
    tarfile.CHRTYPE: "device",
    tarfile.BLKTYPE: "device",
    tarfile.FIFOTYPE: "device",
}
_LABEL = b"V"
"""Type of the header in which GNU tar keeps the name of a tape."""

_RECORD = re.compile(rb"([1-9][0-9]{0,5}) ([^=\n]+)=")
_SIZE = re.compile(rb"[0-9]{1,19}")
_ADVICE = "Copy or make it again."
_LIMITED = "Repair it, or raise `archive_limits`."
_PACKED = {b"BZh": "bzip2", b"\xfd7z": "xz", b"(\xb5/": "zstd"}


@final
class ArchiveError(ValueError):
    """An archive that cannot be read on: cut, damaged, or larger than its limits.

    Attributes:
        problem: names the archive, the place and what was expected; the message adds what to do.
    """

    def __init__(self, problem: str, advice: str = "") -> None:
        super().__init__(f"{problem} {advice}".strip())
        self.problem = problem


@dataclass(frozen=True)  # no slots: jsonargparse reads a default's fields by `vars`
class ArchiveLimits:
    """Bounds on one archive from elsewhere; the defaults are about ten times what MMEB-V2 needs.

    Attributes:
        member_mib: largest member, in MiB.
        sample_mib: largest sum of the members of one sample, in MiB.
        num_members: most members of one sample.
        ratio: most bytes that come out of a compressed archive for each byte of it.
    """

    member_mib: int = 64
    sample_mib: int = 256
    num_members: int = 1024
    ratio: int = 200

    def __post_init__(self) -> None:
        if min(self.member_mib, self.sample_mib, self.num_members, self.ratio) < 1:
            raise ValueError(f"{self}: expected numbers of at least 1.")


@dataclass(frozen=True, slots=True)
class TarMember:
    """One member; only a file has data.

    Attributes:
        offset: of its data in the tar, unpacked.
    """

    name: str
    kind: Kind
    data: bytes = b""
    offset: int = 0


class ByteStream(Protocol):
    """A source of bytes that is read front to back: a file, a pipe, the body of a URL."""

    def read(self, size: int, /) -> bytes: ...


def read_tar(stream: ByteStream, where: str, limits: ArchiveLimits) -> Iterator[TarMember]:
    """Reads the members of a tar, plain or gzip, in order.

    A tar ends with two blocks of zeros, as usual writers put there, or with one and nothing behind
    it. Anything behind the end is a fault, since `cat a.tar b.tar` would lose `b` in silence.

    Args:
        stream: read to its end, so that the exit status of a pipe is seen.
        where: names the tar in errors, such as `Tar pairs.tar`.
        limits: on sizes and compression.

    Raises:
        ArchiveError: cut, damaged, of a kind that is not read (sparse, several volumes), or beyond
            the limits; every member before has been handed out whole.
    """
    return iter(_TarReader(stream, where, limits))


@final
class _Counted:
    """A stream that counts its bytes, the first of which may be looked at before they are read."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self.count = 0
        self.head = stream.read(3)

    def read(self, size: int, /) -> bytes:
        data, self.head = self.head[:size], self.head[size:]
        if size > len(data):
            data += self._stream.read(size - len(data))
        self.count += len(data)
        return data


@final
class _TarReader:
    """One pass over a tar; `_at` counts its bytes, unpacked."""

    def __init__(self, stream: ByteStream, where: str, limits: ArchiveLimits) -> None:
        self._raw, self._where, self._limits = stream, where, limits
        self._most = limits.member_mib << 20

        # Opened by the first read, so that a fault at the start is reported like any other.
        self._stream: ByteStream | None = None
        self._packed: _Counted | None = None
        self._at = 0

    def __iter__(self) -> Iterator[TarMember]:
        while (member := self._next()) is not None:
            yield member
        self._check_end()

    def _next(self) -> TarMember | None:
        """Reads the next member; None behind the last one."""
        path = size = None

        for number in range(MAX_HEADERS + 1):
            start = self._at
            header = self._header(start)

            if header is None and number:
                raise self._fault(start, "ends between the headers of one member: it was cut")
            if header is None:
                return None

            # A long name or a pax header describes the member that follows it.
            if header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
                name = self._body(header, start).split(b"\0")[0]
                path = name if header.type == tarfile.GNUTYPE_LONGNAME else path
            elif header.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
                fields = self._pax(header, start)
                path, size = fields.get(b"path", path), fields.get(b"size", size)
            elif header.type == _LABEL:
                self._body(header, start)
            elif header.type == tarfile.XGLTYPE:
                if set(self._pax(header, start)) & {b"path", b"size", b"linkpath"}:
                    raise self._fault(start, "gives one path or size to all members")
            else:
                return self._member(header, path, size, start)
        raise self._fault(start, f"has more than {MAX_HEADERS} headers before one member")

    def _header(self, start: int) -> tarfile.TarInfo | None:
        block = self._read(BLOCK)
        if block and not block.strip(b"\0"):
            return None
        if not block and not start:
            raise self._fault(start, "is empty, and no tar")

        if not block:
            raise self._fault(
                start,
                "stops without the blocks of zeros that end a tar: it was cut, or its writer left "
                "them out (then read it as `pipe:cat FILE; head -c 1024 /dev/zero`)",
            )

        try:
            # Names that are no UTF-8 stay what they are to a reader, and can be printed.
            return tarfile.TarInfo.frombuf(block, "utf-8", "backslashreplace")
        except (tarfile.HeaderError, ValueError, OverflowError) as error:
            what = "has a header that does not read" if start else "does not begin as a tar does"
            raise self._fault(start, f"{what} ({error})") from None

    def _member(
        self, header: tarfile.TarInfo, path: bytes | None, size: bytes | None, start: int
    ) -> TarMember:
        # Bounded before it is used: a pax header may state a name of any length.
        name = header.name if path is None else path.decode("utf-8", "backslashreplace")
        if len(name) > MAX_NAME:
            raise self._fault(start, f"has a name of {len(name)} letters (at most {MAX_NAME})")

        kind = _KINDS.get(header.type)
        if kind is None:
            what = "sparse" if header.type == tarfile.GNUTYPE_SPARSE else f"of type {header.type!r}"
            raise self._fault(
                start, f"has a member that is {what}, which is not read: {name!r:.99}"
            )

        # A pax size replaces the header's own field, which ends at 8 GiB.
        if size is not None:
            if not _SIZE.fullmatch(size):
                raise self._fault(start, f"states the size {size!r:.40} of {name!r:.99}")
            header.size = int(size)

        # A link or a device has no content, so that a size there is a fault.
        if not 0 <= header.size <= self._most or (header.size and kind in ("link", "device")):
            raise self._fault(
                start,
                f"has a {kind} of {header.size} bytes, {name!r:.99} (the limit is "
                f"{self._limits.member_mib} MiB for a file, none for what is no file)",
                _LIMITED,
            )

        if kind != "file":
            return TarMember(name, kind)
        return TarMember(name, kind, offset=self._at, data=self._data(header.size, name))

    def _body(self, header: tarfile.TarInfo, start: int) -> bytes:
        # Checked before the read, which holds the whole body in memory.
        if not 0 <= header.size <= MAX_HEADER_BYTES:
            raise self._fault(
                start, f"has a header of {header.size} bytes (at most {MAX_HEADER_BYTES} are read)"
            )
        return self._data(header.size, "a header")

    def _pax(self, header: tarfile.TarInfo, start: int) -> dict[bytes, bytes]:
        """Parses the records of a pax header: `LENGTH KEY=VALUE` and a line's end."""
        body, at, records = self._body(header, start).rstrip(b"\0"), 0, dict[bytes, bytes]()

        while at < len(body):
            # A record states its own length; it must end on a line's end inside the body.
            match = _RECORD.match(body, at)
            end = at + int(match[1]) if match else 0
            if match is None or not match.end() < end <= len(body) or body[end - 1 : end] != b"\n":
                raise self._fault(start, "has a pax header that does not read")

            if match[2].startswith(b"GNU.sparse"):
                raise self._fault(start, "has a member that is sparse, which is not read")
            records[match[2]], at = body[match.end() : end - 1], end
        return records

    def _data(self, size: int, name: str) -> bytes:
        start, data = self._at, self._read(size)
        # A body is padded to whole blocks; a tar that lacks the padding was cut, too.
        rest = -size % BLOCK
        if len(data) != size or len(self._read(rest)) != rest:
            raise self._fault(start, f"ends within {name!r:.99}: it was cut")
        return data

    def _check_end(self) -> None:
        """Checks that only zeros, or nothing, stand behind the first block of zeros."""
        start, first = self._at, self._read(BLOCK)
        if first.strip(b"\0"):
            raise self._fault(start - BLOCK, "has a block of zeros in place of a header")

        while rest := self._read(BLOCK << 5):
            if rest.strip(b"\0"):
                raise self._fault(
                    self._at - len(rest),
                    "goes on behind its end: two tars in one file, or one that was written over a "
                    "longer one. Give every tar a file of its own",
                )

            # An endless pipe of zeros must end somewhere.
            if self._at - start > MAX_PADDING:
                raise self._fault(start, f"is followed by more than {MAX_PADDING} bytes of zeros")

    def _read(self, size: int) -> bytes:
        try:
            stream = self._stream or self._open()
            data = stream.read(size)
        except (OSError, EOFError, zlib.error) as error:
            raise self._fault(self._at, f"cannot be read on: {words_of(error)}") from None
        self._at += len(data)

        # Checked at every read, so that a small file cannot unpack without end.
        if self._packed and self._at > FREE_BYTES + self._limits.ratio * self._packed.count:
            raise self._fault(
                self._at,
                f"is compressed to less than 1/{self._limits.ratio} (the limit `ratio`)",
                _LIMITED,
            )

        return data

    def _open(self) -> ByteStream:
        counted = _Counted(self._raw)

        # The first bytes decide, since a pipe has no name and a name may be wrong.
        for magic, name in _PACKED.items():
            if counted.head.startswith(magic):
                raise self._fault(
                    0, f"is packed by {name}: unpack it, or read it through a `pipe:`"
                )

        self._stream = counted
        if counted.head.startswith(b"\x1f\x8b"):
            self._packed = counted
            self._stream = gzip.GzipFile(fileobj=counted, mode="rb")  # type: ignore[call-overload]
        return self._stream

    def _fault(self, at: int, what: str, advice: str = _ADVICE) -> ArchiveError:
        return ArchiveError(f"{self._where}, offset {at}: it {what}.", advice)


def open_zip(path: Path) -> zipfile.ZipFile:
    """Opens a zip file, of which `read_zip_member` reads members.

    Raises:
        ArchiveError: the file is no zip file, or was cut.
    """
    try:
        return zipfile.ZipFile(path)
    except FileNotFoundError:
        # An OSError, too, but an absent file is no damaged archive.
        raise
    except (OSError, ValueError, RuntimeError, struct.error, zipfile.BadZipFile) as error:
        raise ArchiveError(
            f"{path} cannot be read as a zip file: {words_of(error)}.", _ADVICE
        ) from None


def read_zip_member(archive: zipfile.ZipFile, name: str, limits: ArchiveLimits) -> bytes:
    """Reads one member of a zip file.

    Raises:
        ArchiveError: absent, encrypted, damaged, of an unusual compression, or beyond the limits.
    """
    where = f"{archive.filename}, member {name!r:.200}"
    try:
        info = archive.getinfo(name)
    except KeyError:
        raise ArchiveError(f"{where} is missing.", _ADVICE) from None

    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ArchiveError(f"{where} is compressed in an unusual way: pack it with deflate.")

    # The sizes come from the directory, so that a bomb is refused before it is unpacked.
    if info.file_size > limits.member_mib << 20:
        raise ArchiveError(
            f"{where} has {info.file_size} bytes (the limit is {limits.member_mib} MiB)."
        )

    if info.file_size > FREE_BYTES + limits.ratio * info.compress_size:
        raise ArchiveError(f"{where} is compressed to less than 1/{limits.ratio} (the limit).")

    # Damage shows as any of these errors, by what part of the file it hits.
    try:
        return archive.read(info)
    except (OSError, EOFError, ValueError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
        raise ArchiveError(f"{where} cannot be read: {words_of(error)}.", _ADVICE) from None


def words_of(error: Exception) -> str:
    """Returns the reason that an error gives, without the number of the operating system.

    >>> words_of(FileNotFoundError(2, "No such file or directory"))
    'No such file or directory'
    """
    reason = error.strerror if isinstance(error, OSError) else None
    return reason or quote(error) or type(error).__name__
