"""Media inside of other files: members of a tar, cells of a Parquet or an Arrow file.

Their names are paths below the media folder that go on inside of the file:
`00000.tar/000000012.jpg`, and `train.parquet/image/17` for row 17 of the column `image`, counted
from 0. Only the bytes that are asked for are in memory, of a Parquet file one row group.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import Any, final

from datamodules.archives import ArchiveError, ArchiveLimits, read_tar
from datamodules.prepare.cells import shown
from datamodules.prepare.media_paths import MediaPathError, find_media
from datamodules.prepare.row_files import parquet_faults
from datamodules.tar_samples import ForeignMembers, named_members
from mmemb.records.text import printable
from mmemb.storage.files import file_identity

LIMITS = ArchiveLimits()

_INSIDE = re.compile(r"\.(?:tar|parquet|arrow)/", re.IGNORECASE)
_GZIP = b"\x1f\x8b"

_Identity = tuple[int, int, int, int]


@final
@dataclass(frozen=True, slots=True)
class Contained:
    """A picture or a clip inside of a file.

    Attributes:
        container: the file.
        member: its name inside.
    """

    container: Path
    member: str

    @property
    def name(self) -> str:
        """How messages name it."""
        return f"{self.container.name}/{self.member}"

    def read(self) -> bytes:
        """Returns its bytes.

        Raises:
            ValueError: it is missing, or the container is damaged; names it.
        """
        try:
            read = _READERS[self.container.suffix.lower()]
            data = read(self.container, file_identity(self.container), self.member)
        except (*parquet_faults(), LookupError) as error:
            raise ValueError(f"{printable(self.name)} cannot be read ({error!s:.200}).") from None

        if data is None:
            raise ValueError(
                f"{printable(self.name)} holds no bytes, perhaps a path alone: save the data set "
                "with its pictures."
            )
        return data


def find_contained(folder: Path, name: str) -> Contained | None:
    """Returns the place of a name that leads into a file; None if it does not.

    Raises:
        MediaPathError: the way to the file leads elsewhere.
    """
    for match in _INSIDE.finditer(name):
        end = match.end() - 1
        try:
            path = find_media(folder, name[:end])
        except MediaPathError:
            return None

        # A folder may be called `x.tar`, too.
        if path.is_file():
            return Contained(path, name[end + 1 :])
    return None


def check_inside(folder: Path, files: Iterable[Path]) -> None:
    """Refuses files that are links out of their folder, which media are not read through.

    Raises:
        ValueError: names the first one.
    """
    root = folder.resolve()
    for path in files:
        if not path.resolve().is_relative_to(root):
            raise ValueError(
                f"{path} is a link that leads out of {folder}, as in the cache of a hub: give a "
                "copy with its files (`cp -rL`)."
            )


def open_tar(path: Path) -> Any:
    """Opens a tar whose members can be read one by one, which a packed one's cannot.

    Raises:
        ArchiveError: it is packed.
    """
    file = open(path, "rb")  # noqa: SIM115 - the caller closes it
    if file.read(2) == _GZIP:
        file.close()
        raise ArchiveError(f"{path} is packed by gzip.", "Unpack it (gunzip).")
    file.seek(0)
    return file


def open_arrow(path: Path) -> Sequence[Any]:
    """Returns the record batches of an Arrow stream, mapped and not read.

    Raises:
        ValueError: it is none, or damaged.
    """
    import pyarrow as pa

    try:
        with pa.ipc.open_stream(pa.memory_map(str(path))) as reader:
            batches = list(reader)
            # Offsets of a damaged file would lead out of its memory.
            for batch in batches:
                batch.validate(full=True)
            return batches
    except parquet_faults() as error:
        raise ValueError(
            f"{path} is no whole Arrow stream, as `datasets` saves it ({error!s:.200})."
        ) from None


def _tar_member(path: Path, identity: _Identity, member: str) -> bytes:
    places = _tar_places(path, identity)
    if member not in places:
        raise KeyError(f"no member of this name: {shown(member)}")

    offset, size = places[member]
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(size)


@lru_cache(maxsize=8)  # rows come in the order of their tars
def _tar_places(path: Path, _identity: _Identity) -> Mapping[str, tuple[int, int]]:
    """Offset and size of each member; a tar is read through once for its thousands of members."""
    with open_tar(path) as file:
        members = read_tar(file, f"Tar {path}", LIMITS)
        return {
            str(PurePosixPath(f"{key}.{ending}")): (member.offset, len(member.data))
            for key, ending, member in named_members(members, ForeignMembers())
            if member.kind == "file"
        }


def _parquet_cell(path: Path, identity: _Identity, member: str) -> bytes | None:
    column, row = _cell(member)
    starts = _group_starts(path, identity)
    group = bisect_right(starts, row) - 1
    return _bytes_of(_group(path, identity, group, column)[row - starts[group]])


@lru_cache(maxsize=8)
def _group_starts(path: Path, _identity: _Identity) -> list[int]:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        meta = file.metadata
        counts = (meta.row_group(n).num_rows for n in range(meta.num_row_groups))
        return list(accumulate(counts, initial=0))


@lru_cache(maxsize=2)  # of the query's and the target's column, since each may be large
def _group(path: Path, _identity: _Identity, group: int, column: str) -> Any:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        # A column `a.b` is asked for by the same name as the field `b` of a column `a`.
        return file.read_row_group(group, columns=[column]).column(column)


def _arrow_cell(path: Path, identity: _Identity, member: str) -> bytes | None:
    column, row = _cell(member)
    batches, starts = _arrow_batches(path, identity)
    number = bisect_right(starts, row) - 1
    return _bytes_of(batches[number].column(column)[row - starts[number]])


@lru_cache(maxsize=8)
def _arrow_batches(path: Path, _identity: _Identity) -> tuple[Sequence[Any], list[int]]:
    batches = open_arrow(path)
    return batches, list(accumulate((batch.num_rows for batch in batches), initial=0))


def _cell(member: str) -> tuple[str, int]:
    column, _, row = member.rpartition("/")
    if not (column and row.isdecimal()):
        raise KeyError(f"expected COLUMN/ROW, got {shown(member)}")
    return column, int(row)


def _bytes_of(cell: Any) -> bytes | None:
    value = cell.as_py()
    return value["bytes"] if isinstance(value, dict) else value


_READERS: Mapping[str, Callable[[Path, _Identity, str], bytes | None]] = {
    ".tar": _tar_member,
    ".parquet": _parquet_cell,
    ".arrow": _arrow_cell,
}
