"""The converter beside plain decoding and taring of the same pictures, for `experiments.bench`."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
from PIL import Image

from datamodules.prepare.mmeb.annotations import FOLDER
from datamodules.prepare.mmeb.folders import Settings
from datamodules.prepare.mmeb.layouts import plan_task
from datamodules.prepare.mmeb.write import write_root
from mmemb.benchmarks.mmeb_v2 import Task, task_named

_SIDE = (640, 480)


def converter_and_plain(
    tmp: Path, num_pictures: int = 200
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Returns both as functions that may be called again; writes the pictures below `tmp` first.

    The plain loop decodes each picture and puts its bytes into one tar; the converter also reads
    the annotations, checks counts, hashes, and writes indices and candidates.
    """
    source, numbers = tmp / "source", count()
    task = _write_source(source, num_pictures)

    paths = sorted((source / "image-tasks").iterdir())

    def ours() -> object:
        return write_root(plan_task(task, source), tmp / f"out-{next(numbers)}", Settings())

    def plain() -> None:
        with tarfile.open(tmp / f"plain-{next(numbers)}.tar", "w") as tar:
            for path in paths:
                data = path.read_bytes()
                with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
                    image.convert("RGB")
                info = tarfile.TarInfo(path.name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))

    return ours, plain


def _write_source(source: Path, num_pictures: int) -> Task:
    from pyarrow import Table, parquet  # a library of this command alone

    task = replace(task_named("VOC2007"), num_queries=num_pictures, num_candidates=2)

    folder = source / FOLDER / task.source / task.config
    for path in (folder, source / "image-tasks"):
        path.mkdir(parents=True, exist_ok=True)

    random = np.random.default_rng(0)
    names = [f"{n:06d}.jpg" for n in range(num_pictures)]

    for name in names:
        coarse = Image.fromarray(random.integers(0, 256, (30, 40, 3), np.uint8))
        coarse.resize(_SIDE).save(source / "image-tasks" / name, quality=90)

    columns = {
        "qry_inst": [task.query_instruction] * num_pictures,
        "qry_text": [""] * num_pictures,
        "qry_img_path": names,
        "tgt_text": [["cat", "dog"]] * num_pictures,
    }

    parquet.write_table(Table.from_pydict(columns), folder / "test-00000-of-00001.parquet")
    return task
