"""Reads and checks the pictures of a plan: whole, of a known format, bounded in pixels, unchanged.

Pages that lie in a table are copied once to a nameless scratch file: candidates are written in
another order than the table's, and reading a table at random is slow.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, final

from datamodules.prepare.mmeb.annotations import open_parquet
from datamodules.prepare.mmeb.plan import Media, Picture, TaskPlan
from datamodules.prepare.mmeb.visdoc import ID, IMAGE
from mmemb.media import pictures


@final
class UnreadableError(ValueError):
    """A row has no readable pictures; `--on-error skip` leaves out such rows only."""


def check_picture(data: bytes, where: str) -> str:
    """Decodes a picture to see that it is whole; returns its extension in a shard.

    Raises:
        UnreadableError: not a WebP, PNG or JPEG, truncated, or another that cannot be read.
    """
    try:
        return pictures.check_picture(data, pictures.SHARD_FORMATS, where)
    except pictures.PictureError as error:
        raise UnreadableError(
            f"{error} Unpack or fetch it again, or leave such rows out with `--on-error skip`."
        ) from None


def picture_file(path: Path) -> bytes:
    """Returns the bytes of a picture's file.

    Raises:
        UnreadableError: the file is too long for a picture.
        OSError: the file cannot be read.
    """
    try:
        return pictures.picture_bytes(path)
    except pictures.PictureError as error:
        raise UnreadableError(f"{error} Or leave it out with `--on-error skip`.") from None


@final
class PictureReader:
    """Reads a plan's pictures, for several threads at once; use it as a context.

    Args:
        plan: names the pictures.
        scratch: folder on a disk that has room for all pages of the corpus.
    """

    def __init__(self, plan: TaskPlan, scratch: Path) -> None:
        self._plan, self._scratch = plan, scratch
        self._lock, self._open = threading.Lock(), ExitStack()
        self._pages: _Pages | None = None

    def __enter__(self) -> PictureReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def members(self, media: Media, side: str) -> dict[str, bytes]:
        """Returns the pictures as members of a sample, `q0.jpg` or `q0.000.jpg`, ...

        Raises:
            UnreadableError: a picture is missing or cannot be decoded.
        """
        if media.problem:
            raise UnreadableError(media.problem)

        members = {}
        # One image is `q0.jpg`; frames have a place of three digits, so that names sort by time.
        for number, picture in enumerate(media.pictures):
            where, data = self._read(picture)
            extension = check_picture(data, where)
            members[
                f"{side}0.{number:03d}.{extension}" if media.moving else f"{side}0.{extension}"
            ] = data
        return members

    def _read(self, picture: Picture) -> tuple[str, bytes]:
        if picture.row >= 0:
            where = f"{self._plan.task.name}, page {picture.name!r}"
            return where, self._page(picture)

        path = self._plan.source / picture.name
        # A missing file is a fault of its row, which `--on-error skip` may leave out.
        try:
            return str(path), picture_file(path)
        except OSError as error:
            raise UnreadableError(f"{path} cannot be read: {error.strerror}.") from None

    def _page(self, picture: Picture) -> bytes:
        # Several threads may ask for the first page at once; only one copies the table.
        with self._lock:
            if self._pages is None:
                scratch = tempfile.TemporaryFile(dir=self._scratch)  # noqa: SIM115 (`__exit__` closes it)
                file = self._open.enter_context(scratch)
                self._pages = _Pages(file, self._plan)
        # Outside the lock: `pread` needs no shared position, so threads read at the same time.
        return self._pages.read(picture.row)


@final
class _Pages:
    """Keeps the pictures of a corpus in one file; a fault of the corpus is raised at every read."""

    def __init__(self, file: IO[bytes], plan: TaskPlan) -> None:
        self._file, self._spans = file, list[tuple[int, int]]()
        self._problem = ""

        # Raised at every read and not here: only one thread makes this object, all read from it.
        try:
            for data in _corpus(plan.corpus):
                self._spans.append((file.tell(), len(data)))
                file.write(data)
        except (OSError, ValueError) as error:
            self._problem = f"{plan.task.name}: the pages of the corpus cannot be copied: {error}."

        file.flush()
        self._compare(plan)

    def read(self, row: int) -> bytes:
        if self._problem:
            raise ValueError(self._problem)

        start, size = self._spans[row]
        return os.pread(self._file.fileno(), size, start)

    def _compare(self, plan: TaskPlan) -> None:
        # Rows with one name may be repeated pages, but only if their pictures are equal.
        for first, second in plan.twins:
            if not self._problem and self.read(first) != self.read(second):
                self._problem = (
                    f"{plan.task.name}: rows {first} and {second} of the corpus have one name and "
                    "two pictures; expected one page for one name. Fetch the corpus again."
                )


def _corpus(files: tuple[Path, ...]) -> Iterator[bytes]:
    for path in files:
        with open_parquet(path, (ID, IMAGE)) as table:
            for batch in table.iter_batches(batch_size=16, columns=[IMAGE]):
                for page in batch.column(0).to_pylist():
                    yield (page or {}).get("bytes") or b""
