"""Tars made in memory, as writers of all kinds make them, whole and broken."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable

END = bytes(1024)


def member(
    name: str,
    data: bytes = b"",
    kind: bytes = tarfile.REGTYPE,
    size: int | None = None,
    layout: int = tarfile.USTAR_FORMAT,
    **fields: str,
) -> bytes:
    """Header and data of one member, with nothing behind them; `size` is stated in place of the
    true one."""
    info = tarfile.TarInfo(name)
    info.size, info.type = len(data) if size is None else size, kind
    info.linkname = fields.pop("linkname", "")
    info.pax_headers = fields
    return info.tobuf(layout, "utf-8", "surrogateescape") + data + bytes(-len(data) % 512)


def pack(
    files: Iterable[tuple[str, bytes]], layout: int = tarfile.USTAR_FORMAT, end: bytes = END
) -> bytes:
    """A tar of files in this order."""
    return b"".join(member(name, data, layout=layout) for name, data in files) + end


def unpack(tar: bytes) -> list[tuple[str, bytes]]:
    """The files of a whole tar, read by Python's own reader."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        return [(info.name, archive.extractfile(info).read()) for info in archive if info.isfile()]
