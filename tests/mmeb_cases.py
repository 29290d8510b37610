"""Small data sets in the published layouts of MMEB-V2, and what a converter must make of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmemb.benchmarks.mmeb_v2 import Task
from tests import mmeb_video_cases as video
from tests.mmeb_sources import (
    TOKEN,
    Asked,
    Case,
    counted,
    picture,
    put,
    put_rows,
    repository,
    write_pages,
)


def image_rows(source: Path, task: Task, rows: Sequence[Mapping[str, Any]]) -> None:
    """Annotations of an image task, and every picture that they name."""
    path = repository(source, task.source) / task.config / "test-00000-of-00001.parquet"
    empty = {"qry_inst": "", "qry_text": "", "qry_img_path": "", "tgt_inst": ""}
    rows = [empty | {"tgt_img_path": [""] * len(row["tgt_text"])} | row for row in rows]
    put_rows(path, rows)
    names = {n for row in rows for n in (row["qry_img_path"], *row["tgt_img_path"]) if n}
    for number, name in enumerate(sorted(names)):
        put(source / "image-tasks" / name, picture(number, "PNG" if "png" in name else "JPEG"))


def image_cls(source: Path) -> Case:
    task = counted("VOC2007", 2, 2)
    inst = f"{TOKEN}\nIdentify the object shown in the image"
    rows = [
        {"qry_inst": inst, "qry_img_path": "VOC/0.jpg", "tgt_text": ["potted_plant", "cat"]},
        {"qry_inst": inst, "qry_img_path": "VOC/1.png", "tgt_text": ["cat", "potted_plant"]},
    ]
    image_rows(source, task, rows)
    plain = "\nIdentify the object shown in the image"
    first, second = ("potted_plant", "cat"), ("cat", "potted_plant")
    return Case(
        task,
        [Asked("", plain, "image", {r[0]: 1.0}, r, r[:1]) for r in (first, second)],
        [("potted_plant", "potted_plant"), ("cat", "cat")],
    )


def image_qa(source: Path) -> Case:
    task, inst = counted("OK-VQA", 2, 3), f"{TOKEN}Represent the given image"
    rows = [
        {"qry_inst": inst, "qry_text": "what?", "qry_img_path": "a.jpg", "tgt_text": list("xyz")},
        {"qry_inst": inst, "qry_text": "who?", "qry_img_path": "a.jpg", "tgt_text": list("zx")},
    ]
    image_rows(source, task, rows)
    asked = [
        Asked(row["qry_text"], inst[11:], "image", {row["tgt_text"][0]: 1.0}, row["tgt_text"],
              (row["tgt_text"][0],))
        for row in rows
    ]  # fmt: skip
    return Case(task, asked, [(name, name) for name in "xyz"])


def image_i2t(source: Path) -> Case:
    task = counted("MSCOCO_i2t", 1, 2)
    image_rows(source, task, [{"qry_img_path": "a.jpg", "tgt_text": ["a dog", "a cat"]}])
    asked = Asked("", "", "image", {"a dog": 1.0}, ["a dog", "a cat"], ("a dog",))
    return Case(task, [asked], [("a dog", "a dog"), ("a cat", "a cat")])


def image_t2i(source: Path) -> Case:
    task, see = counted("WebQA", 2, 2), "\nRepresent it:"
    rows = [
        {"qry_inst": "Find:", "qry_text": "q0", "tgt_inst": TOKEN + see,
         "tgt_text": ["one", "two"], "tgt_img_path": ["w/1.jpg", "w/2.jpg"]},
        {"qry_inst": "Find:", "qry_text": "q1", "tgt_inst": TOKEN + see,
         "tgt_text": ["other words", "three"], "tgt_img_path": ["w/2.jpg", "w/3.jpg"]},
    ]  # fmt: skip
    image_rows(source, task, rows)
    asked = [
        Asked(row["qry_text"], "Find:", "", {row["tgt_img_path"][0]: 1.0}, row["tgt_img_path"])
        for row in rows
    ]
    names = [("w/1.jpg", "one"), ("w/2.jpg", "two"), ("w/3.jpg", "three")]
    return Case(task, asked, names, see, "image")


def image_i2i_vg(source: Path) -> Case:
    """Two objects in one picture, and a name that the list holds twice."""
    task = counted("RefCOCO-Matching", 1, 4)
    row = {
        "qry_inst": TOKEN + " Select:", "qry_text": '"red"', "qry_img_path": "r/1.jpg",
        "tgt_inst": TOKEN + " Select:", "tgt_text": ['"left"', '"right"', '"left"', '"left"'],
        "tgt_img_path": ["r/1.jpg", "r/1.jpg", "r/2.jpg", "r/1.jpg"],
    }  # fmt: skip
    image_rows(source, task, [row])
    names = ["r/1.jpg:left", "r/1.jpg:right", "r/2.jpg:left", "r/1.jpg:left"]
    asked = Asked('"red"', " Select:", "image", {names[0]: 1.0}, names)
    texts = list(zip(names[:3], row["tgt_text"], strict=False))
    return Case(task, [asked], texts, " Select:", "image")


def beir(source: Path) -> Case:
    """Ids are numbers; grades: one of 0, one below it, one pair twice."""
    task = counted("ViDoRe_esg_reports_human_labeled_v2", 2, 4)
    pages = [(n, picture(n)) for n in (1, 2, 3, 4)]
    grades = [(7, 3, 1), (7, 3, 2), (7, 1, 1), (7, 2, 0), (8, 4, 1), (8, 1, -1), (7, 3, 1)]
    write_pages(source, task, [(7, "who"), (8, "what")], pages, grades)
    right = [{"3": 2.0, "1": 1.0}, {"4": 1.0}]
    asked = [
        Asked(text, task.query_instruction, "", relevance)
        for text, relevance in zip(("who", "what"), right, strict=True)
    ]
    names = [(name, "") for name in "3142"]
    return Case(task, asked, names, task.target_instruction, "image")


def visrag(source: Path) -> Case:
    """Ids are names of files; a page that occurs twice with the same picture is one page."""
    task = counted("VisRAG_ChartQA", 1, 2)
    pages = [("a.b.png", picture(1)), ("long name.png", picture(2)), ("a.b.png", picture(1))]
    write_pages(source, task, [("q-1", "how much")], pages, [("q-1", "long name.png", 1.0)])
    asked = Asked("how much", task.query_instruction, "", {"long name.png": 1.0})
    names = [("long name.png", ""), ("a.b.png", "")]
    return Case(task, [asked], names, task.target_instruction, "image")


CASES: Mapping[str, Callable[[Path], Case]] = {
    write.__name__: write
    for write in (
        image_cls, image_qa, image_i2t, image_t2i, image_i2i_vg, video.video_classification,
        video.ssv2, video.mvbench, video.videomme, video.nextqa, video.egoschema,
        video.activitynetqa, video.didemo, video.msrvtt, video.msvd, video.vatex, video.youcook2,
        video.moment_retrieval, video.momentseeker, beir, visrag,
    )
}  # fmt: skip
"""Layout -> what writes a small data set of it below a folder."""
