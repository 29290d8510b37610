"""Files that hold pictures with captions. An input's first line is the file's suffix."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import ClassVar, final

from datamodules.prepare.folder.media import side_members
from datamodules.prepare.folder.sources import add_sources, read_source
from datamodules.prepare.folder.table import with_defaults
from tests.fixtures.own_containers import captioned, save_to_disk, tar_sample, write_tar
from tests.fuzzing.kind import Kind
from tests.fuzzing.mutations import mutate_bytes
from tests.fuzzing.tables import check_row

_OPTIONS = {".tar": "--tars", ".parquet": "--dataset", ".arrow": "--dataset"}


@final
class Containers(Kind):
    """A suffix, a line feed, and the file."""

    name: ClassVar[str] = "containers"

    def make_seeds(self) -> Sequence[bytes]:
        from pyarrow import parquet

        table = captioned(range(3))
        parquet.write_table(table, self.folder / "a.parquet", row_group_size=2)
        save_to_disk(self.folder / "saved", table)
        paths = [
            self.folder / "a.parquet",
            self.folder / "saved/data-00000-of-00001.arrow",
            write_tar(self.folder / "a.tar", [*tar_sample(0), *tar_sample(1)]),
        ]
        return [f"{path.suffix}\n".encode() + path.read_bytes() for path in paths]

    def mutate(self, data: bytes, random: Random) -> bytes:
        suffix, _, body = data.partition(b"\n")
        others = [seed.partition(b"\n")[2] for seed in self.seeds]
        return suffix + b"\n" + mutate_bytes(body, random, others)

    def marks(self, data: bytes) -> Sequence[str]:
        return ("the_file",)

    def read(self, data: bytes) -> None:
        suffix, _, body = data.partition(b"\n")
        path = self.folder / f"the_file{suffix.decode()}"
        path.write_bytes(body)

        parser = argparse.ArgumentParser()
        add_sources(parser)
        options = parser.parse_args([_OPTIONS[path.suffix], str(path)])
        options.split = "train"
        source = read_source(options)
        rows, _ = with_defaults(list(source.rows))
        for row in rows:
            check_row(row)
            # A row with a fault may hold a placeholder, which nobody reads.
            for side in () if row.faults else row.sides:
                _read(source.media, side.media)


def _read(folder: Path, media: Sequence[str]) -> None:
    try:
        side_members(folder, media, "q", 8)
    except ValueError as error:
        if "the_file" not in str(error):  # it is a fault of its row, which names the picture
            raise
