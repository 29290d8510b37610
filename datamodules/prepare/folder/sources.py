"""Where pairs of a user come from: a table, pictures, tars, a data set; all give equal rows."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import final, get_args

from datamodules.prepare.folder.columns import GUIDE, Columns, Direction, parse_map
from datamodules.prepare.folder.dataset import dataset_cells, find_files
from datamodules.prepare.folder.picture_folder import picture_cells
from datamodules.prepare.folder.table import OwnRow, own_rows, read_table
from datamodules.prepare.folder.tars import find_tars, tar_cells


@final
@dataclass(frozen=True, slots=True)
class Source:
    """Rows that are read as they are asked for.

    Attributes:
        path: of what is read, for messages.
        media: folder that the rows' paths start from.
        rows: each with its faults.
        columns: says, once the rows were read, what was recognised and what is not used.
        remarks: are filled while the rows are read.
    """

    path: Path
    media: Path
    rows: Iterator[OwnRow]
    columns: Columns
    remarks: list[str] = field(default_factory=list)


def add_sources(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that name a source and its columns."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--table", type=Path, help=".csv, .parquet or .jsonl")
    source.add_argument(
        "--pictures", type=Path, metavar="DIR", help="folder of pictures, each with .txt or .json"
    )
    source.add_argument(
        "--tars", nargs="+", metavar="PLACE",
        help="folder, files or pattern of tars as img2dataset writes them",
    )  # fmt: skip
    source.add_argument(
        "--dataset", type=Path, metavar="PLACE",
        help="Hugging Face data set: Parquet, or a folder of save_to_disk",
    )  # fmt: skip
    parser.add_argument(
        "--media", type=Path, default=None, help="folder that paths of the table start from"
    )
    parser.add_argument(
        "--map", nargs="+", action="extend", default=[], metavar="COLUMN=NAME",
        help="columns under our names, such as filepath=query_media title=target_text",
    )  # fmt: skip
    parser.add_argument(
        "--direction", choices=get_args(Direction),
        help="of pictures with captions: what is the query (text, if not given)",
    )  # fmt: skip


def read_source(options: argparse.Namespace) -> Source:
    """Opens the source that the arguments name; rows are read later.

    Raises:
        ValueError: the arguments do not fit each other.
    """
    _check_out(options)
    columns = Columns(parse_map(options.map), options.direction)
    if options.table is not None:
        return Source(
            options.table, options.media or Path(), read_table(options.table, columns), columns
        )

    if options.media is not None:
        raise ValueError(
            f"--media is for --table alone: other sources hold their pictures ({GUIDE})."
        )
    remarks: list[str] = []
    if options.pictures is not None:
        path = folder = options.pictures
        cells = picture_cells(folder, columns)
    elif options.tars is not None:
        folder, tars = find_tars(options.tars)
        path, cells = Path(options.tars[0]), tar_cells(folder, tars, columns, remarks)
    else:
        path = options.dataset
        folder, files = find_files(path)
        # The user's word counts more than names of files.
        cells = dataset_cells(folder, files, columns, remarks, with_splits=options.split is None)

    return Source(path, folder, own_rows(cells, columns), columns, remarks)


def _check_out(options: argparse.Namespace) -> None:
    """Refuses to write into a folder that is read: its files would be lost, or read as pairs."""
    for place in (options.pictures, options.dataset, *(options.tars or ())):
        if place is None or not Path(place).is_dir():
            continue
        if options.out.resolve().is_relative_to(Path(place).resolve()):
            raise ValueError(
                f"--out {options.out} lies in {place}, which is read, so the next run would take "
                "what this one writes for pairs: give --out a folder outside of it."
            )
