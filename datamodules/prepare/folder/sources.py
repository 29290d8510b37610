"""Where pairs of a user come from: a table or a folder of pictures; all become the same rows."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final, get_args

from datamodules.prepare.folder.columns import GUIDE, Columns, Direction, parse_map
from datamodules.prepare.folder.picture_folder import picture_cells
from datamodules.prepare.folder.table import OwnRow, own_rows, read_table


@final
@dataclass(frozen=True, slots=True)
class Source:
    """Rows that are read as they are asked for.

    Attributes:
        path: of what is read, for messages.
        media: folder that the rows' paths start from.
        rows: each with its faults.
        columns: says, once the rows were read, what was recognised and what is not used.
    """

    path: Path
    media: Path
    rows: Iterator[OwnRow]
    columns: Columns


def add_sources(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that name a source and its columns."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--table", type=Path, help=".csv, .parquet or .jsonl")
    source.add_argument(
        "--pictures", type=Path, metavar="DIR", help="folder of pictures, each with .txt or .json"
    )
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
    columns = Columns(parse_map(options.map), options.direction)
    if options.table is not None:
        return Source(
            options.table, options.media or Path(), read_table(options.table, columns), columns
        )

    if options.media is not None:
        raise ValueError(
            f"--media is for --table alone: other sources hold their pictures ({GUIDE})."
        )
    folder = options.pictures
    return Source(folder, folder, own_rows(picture_cells(folder, columns), columns), columns)
