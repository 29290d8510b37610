"""The five layouts of image tasks: rows of `MMEB_Test_Instruct`, pictures of one archive."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import final

from datamodules.prepare.mmeb.annotations import Row
from datamodules.prepare.mmeb.frames import PictureFolder, first_folder
from datamodules.prepare.mmeb.plan import NO_MEDIA, Media, PlanBuilder, TaskPlan
from mmemb.benchmarks.mmeb_v2 import Task

PLACES = ("image-tasks/MMEB", "image-tasks")
"""Folders that image names start from, with the archive's top folder or without."""

_TOKEN = "<|image_1|>"
_QUERY_COLUMNS = ("qry_inst", "qry_text", "qry_img_path")


def plan_texts(task: Task, source: Path) -> TaskPlan:
    """`image_cls`, `image_qa`, `image_i2t`: a picture and perhaps a text; candidates are texts."""
    return _Reader(task, source).plan((*_QUERY_COLUMNS, "tgt_text"))


def plan_pictures(task: Task, source: Path) -> TaskPlan:
    """`image_t2i`, `image_i2i_vg`: candidates are pictures, some with a caption."""
    columns = (*_QUERY_COLUMNS, "tgt_inst", "tgt_text", "tgt_img_path")
    return _Reader(task, source).plan(columns)


@final
class _Reader:
    def __init__(self, task: Task, source: Path) -> None:
        self._task, self._builder = task, PlanBuilder(task, source)
        root = first_folder(source, PLACES, task.name, "image-tasks/mmeb_v1.tar.gz")
        self._folder = PictureFolder(source, root)

    def plan(self, columns: Sequence[str]) -> TaskPlan:
        for row in self._builder.rows(columns):
            self._add(row)
        return self._builder.finish()

    def _add(self, row: Row) -> None:
        texts = row.texts("tgt_text")
        names = self._add_pictures(row, texts) if "I" in self._task.outputs else texts
        # Texts are their own names: equal labels of several rows are one candidate.
        if "I" not in self._task.outputs:
            for name in names:
                self._builder.candidate(row.where, name, name)

        media, concept = self._query_media(row)
        self._builder.query(
            row.where,
            names,
            {names[0]: 1.0},  # the right one is stored first
            text=_plain(row.text("qry_text")),
            media=media,
            instruction=_plain(row.text("qry_inst")),
            concept=concept,
            answers=() if "I" in self._task.outputs else names[:1],
        )

    def _query_media(self, row: Row) -> tuple[Media, str]:
        if self._task.layout == "image_t2i":
            return NO_MEDIA, ""
        path = row.name("qry_img_path")
        return self._folder.image(path), path

    def _add_pictures(self, row: Row, captions: Sequence[str]) -> list[str]:
        paths = row.texts("tgt_img_path")
        if len(paths) != len(captions):
            raise row.error(f"a caption for each of {len(paths)} pictures", f"{len(captions)}")
        captioned = bool(captions[0].strip())  # the first decides for all of the row

        instruction, names = _plain(row.text("tgt_inst")), []
        for path, caption in zip(paths, captions, strict=True):
            names.append(self._name(path, caption))
            text = _plain(caption) if captioned else ""
            # Two rows may give one picture two captions: the first one wins, as in the benchmark.
            if names[-1] in self._builder:
                self._builder.repeat(names[-1], text, instruction)
            else:
                media = self._folder.image(path)
                self._builder.candidate(row.where, names[-1], text, media, instruction)
        return names

    def _name(self, path: str, caption: str) -> str:
        """Identity of a candidate in the benchmark: objects in one picture differ by captions,
        pages and news pictures by the picture alone."""
        if self._task.layout == "image_t2i":
            return path
        return f"{path}:" + caption.strip('"')


def _plain(text: str) -> str:
    """A text without the media token; backbones set their own."""
    return text.replace(_TOKEN, "")
