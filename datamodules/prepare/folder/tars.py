"""Tars of pictures with captions (`0.jpg`, `0.txt`, `0.json`) as cells; img2dataset writes such.

Nothing is unpacked: a cell names the picture inside of its tar.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import final

from datamodules.archives import ArchiveError, read_tar
from datamodules.prepare.cells import Broken, CellError, shown
from datamodules.prepare.folder.columns import GUIDE, Columns
from datamodules.prepare.folder.containers import LIMITS, check_inside, open_tar
from datamodules.prepare.folder.picture_folder import caption_cells, with_ids
from datamodules.prepare.row_files import Cells
from datamodules.tar_samples import ForeignMembers, TarSample, samples_of
from mmemb.media.clips import CLIPS
from mmemb.media.frames import natural_order
from mmemb.media.pictures import PICTURES
from mmemb.records.text import printable

_MEDIA = PICTURES | CLIPS


def find_tars(places: Sequence[str]) -> tuple[Path, list[Path]]:
    """Returns the tars of folders, files or patterns in natural order, and a folder above all.

    Raises:
        FileNotFoundError: there is none in one of the places.
    """
    found: dict[Path, None] = {}
    for place in places:
        path = Path(place)
        # What lies beside the tars (`_stats.json`, Parquet) repeats what they hold.
        tars = path.rglob("*.tar") if path.is_dir() else map(Path, glob.glob(place, recursive=True))
        files = [tar for tar in tars if tar.is_file()]
        if not files:
            raise FileNotFoundError(
                f"--tars {place} finds no tar: expected a folder with files that end in .tar, such "
                f"a file, or a pattern in quotes ({GUIDE})."
            )
        found |= dict.fromkeys(files)

    folder = Path(os.path.commonpath([tar.absolute().parent for tar in found]))
    if wrong := [tar for tar in found if tar.suffix.lower() != ".tar"]:
        raise FileNotFoundError(f"--tars: {wrong[0]} does not end in .tar.")
    absolute = (tar.absolute() for tar in found)
    ordered = sorted(absolute, key=lambda tar: (tar.parent, natural_order(tar)))
    check_inside(folder, ordered)
    return folder, ordered


def tar_cells(
    folder: Path, tars: Sequence[Path], columns: Columns, remarks: list[str]
) -> Iterator[Cells | Broken | None]:
    """Yields the cells `id`, `picture`, `caption` of each sample, and the keys of its JSON.

    Args:
        folder: that names of pictures start from.
        tars: below it.
        columns: learn the keys of the first samples.
        remarks: gets a sentence about each kind of content that was passed over.

    Raises:
        ValueError: a tar is damaged or beyond the limits, or the mapping does not fit.
    """
    passed = _PassedOver()
    rows = with_ids(_rows(folder, tars, passed), columns)
    yield from columns.matched(str(tars[0]), rows)
    remarks += passed.remarks()


@final
class _PassedOver:
    """Counts what is in the tars and becomes no row."""

    def __init__(self) -> None:
        self.members = ForeignMembers()
        self.num_failed = 0

    def remarks(self) -> Iterator[str]:
        """Yields a sentence for each kind."""
        if self.num_failed:
            yield (
                f"samples without a picture, since their download failed: {self.num_failed:,}; "
                "they were passed over."
            )
        if self.members.count:
            yield (
                f"members of no sample: {self.members.count:,}, such as "
                f"{printable(self.members.first)}; they were passed over."
            )


def _rows(
    folder: Path, tars: Sequence[Path], passed: _PassedOver
) -> Iterator[tuple[str, Cells | Broken]]:
    """Yields samples behind their ids: the tar's name and the key."""
    for tar in tars:
        below = PurePosixPath(tar.relative_to(folder).as_posix())
        try:
            with open_tar(tar) as file:
                members = read_tar(file, f"Tar {tar}", LIMITS)
                for sample in samples_of(members, f"Tar {tar}", LIMITS, passed.members):
                    cells = _cells(below, sample)
                    if cells is None:
                        passed.num_failed += 1
                    else:
                        yield str(PurePosixPath(below.with_suffix(""), sample.key)), cells
        except ArchiveError as error:
            # Its advice is for training, which has settings for the limits.
            raise ValueError(f"{error.problem} Leave the tar out, or write it again.") from None


def _cells(tar: PurePosixPath, sample: TarSample) -> Cells | Broken | None:
    """Returns the cells of a sample; None if its picture could not be downloaded."""
    where = shown(f"{tar}/{sample.key}")
    if sample.problem:
        return Broken(f"{where}: {sample.problem}")
    try:
        cells = caption_cells(sample.data.get("txt"), sample.data.get("json"))
    except CellError as error:
        return Broken(f"{where}: {error}")

    names = sorted(name for name in sample.data if f".{name.rpartition('.')[2]}" in _MEDIA)
    if not names:
        has_failed = cells.get("status", "success") != "success"
        return None if has_failed else Broken(f"{where} has no picture")
    if len(names) > 1:
        return Broken(f"{where} has several pictures, {names[0]} and {names[1]}: expected one")
    if "txt" not in sample.data and "json" not in sample.data:
        return Broken(f"{where} has no caption: expected a .txt or a .json")

    # Last: a key of this name in the JSON would show another picture under this caption.
    return cells | {"picture": [f"{tar}/{sample.key}.{names[0]}"]}
