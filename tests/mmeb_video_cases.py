"""Small data sets in the video layouts of MMEB-V2, and what a converter must make of each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datamodules.prepare.mmeb.video import MVBENCH
from mmemb.benchmarks.mmeb_v2 import Task, task_named
from tests.mmeb_sources import (
    FRAMES,
    Asked,
    Case,
    counted,
    picture,
    put,
    put_frames,
    put_rows,
    repository,
)

ANSWER = task_named("NExTQA").query_instruction


def video_classification(source: Path) -> Case:
    task = counted("K700", 2, 3)
    folder = repository(source, task.source)
    rows = [
        {"video_id": "v_9", "pos_text": "yoga"},
        {"video_id": "v_8", "pos_text": "air drumming"},
    ]
    put_rows(folder / "data" / "test-00000-of-00001.parquet", rows)
    put(folder / "labels.txt", "yoga\r\nzum\u2028ba\n".encode())  # one name holds a line separator
    for row, count in zip(rows, (20, 3), strict=True):
        put_frames(source / FRAMES / "video_cls/K700" / row["video_id"], count)
    asked = [
        Asked("", task.query_instruction, media, {label: 1.0}, None, (label,))
        for media, label in (("8 frames", "yoga"), ("3 frames", "air drumming"))
    ]
    return Case(task, asked, [(n, n) for n in ("yoga", "air drumming", "zum\u2028ba")])


def ssv2(source: Path) -> Case:
    """Ids are numbers, and rows beyond the registry's count are not part of the benchmark."""
    task, labels = counted("SmthSmthV2", 1, 2), ["pushing", "pulling"]
    rows = [{"video_id": n, "pos_text": "pulling", "neg_text": labels} for n in (7, 8)]
    put_rows(repository(source, task.source) / "test.jsonl", rows)
    put_frames(source / FRAMES / "video_cls/SSv2/7", 8)
    asked = Asked("", task.query_instruction, "8 frames", {"pulling": 1.0}, labels, ("pulling",))
    return Case(task, [asked], [(n, n) for n in labels])


def _qa(source: Path, task: Task, folder: str, row: Mapping[str, Any]) -> None:
    config = {"": "data", "MC": "MC", "Subset": "Subset"}[task.config]
    put_rows(repository(source, task.source) / config / "test-0-of-1.parquet", [row])
    put_frames(source / FRAMES / "video_qa/video_qa" / task.name / folder, 2)


def mvbench(source: Path) -> Case:
    task = counted("MVBench", len(MVBENCH), None)
    asked = []
    for number, subset in enumerate(MVBENCH):
        options = ["up", "down", f"{number}"]
        row = {"video": "a.mp4", "question": f"q{number}?", "candidates": options, "answer": "up"}
        put(repository(source, task.source) / f"json/{subset}.json", json.dumps([row]).encode())
        put_frames(source / FRAMES / "video_qa/MVBench" / subset / "a.mp4", 1, number)
        names = ["(A) up", "(B) down", f"(C) {number}"]
        text = f"q{number}?\nOptions:\n" + "\n".join(names)
        asked.append(Asked(text, ANSWER, "1 frames", {"(A) up": 1.0}, names, ("(A) up",)))
    names = ["(A) up", "(B) down", *(f"(C) {n}" for n in range(len(MVBENCH)))]
    return Case(task, asked, [(n, n) for n in names])


def videomme(source: Path) -> Case:
    task, options = counted("Video-MME", 1, 4), ["A. One. Two.", "B. Three.", "C. 4", "D. Five"]
    row = {"question": "How?", "videoID": "x-1", "options": options, "answer": "B"}
    _qa(source, task, "x-1", row)
    asked = Asked("How?\n" + "\n".join(options), ANSWER, "2 frames", {options[1]: 1.0}, options,
                  ("Three",))  # fmt: skip
    return Case(task, [asked], list(zip(options, ["One. Two", "Three", "4", "Five"], strict=True)))


def nextqa(source: Path) -> Case:
    """An option that occurs twice stays twice in the list."""
    task, options = counted("NExTQA", 1, 5), ["jump", "run", "sit", "run", "eat"]
    row = {"video": 4740, "question": "what", "answer": 2} | {
        f"a{n}": option for n, option in enumerate(options)
    }
    _qa(source, task, "4740", row)
    text = "what\nOptions:\n(A) jump\n(B) run\n(C) sit\n(D) run\n(E) eat"
    asked = Asked(text, ANSWER, "2 frames", {"sit": 1.0}, options, ("sit",))
    return Case(task, [asked], [(n, n) for n in ("jump", "run", "sit", "eat")])


def egoschema(source: Path) -> Case:
    task, options = counted("EgoSchema", 1, 2), ["A. C cooks.", "B. C reads. C sleeps."]
    row = {"question": "What is C doing?", "option": options, "answer": "1", "video_idx": "e-1"}
    _qa(source, task, "e-1", row)
    text = "What is C doing?A. C cooks. B. C reads. C sleeps."
    asked = Asked(text, ANSWER, "2 frames", {options[1]: 1.0}, options, ("C reads. C sleeps",))
    return Case(task, [asked], list(zip(options, ["C cooks", "C reads. C sleeps"], strict=True)))


def activitynetqa(source: Path) -> Case:
    task = counted("ActivityNetQA", 1, 2)
    _qa(source, task, "v_1QI", {"video_name": "1QI", "question": "is it day", "answer": "no"})
    text = "is it day? (A) yes; (B) no."
    asked = Asked(text, ANSWER, "2 frames", {"no": 1.0}, ["yes", "no"], ("no",))
    return Case(task, [asked], [("yes", "yes"), ("no", "no")])


def _retrieval(source: Path, name: str, ids: Sequence[str], rows: Sequence[Any]) -> Case:
    task = counted(name, 2, 2)
    folder = repository(source, task.source) / (task.config or "data")
    put_rows(folder / f"{task.split}-00000-of-00001.parquet", rows)
    for n, video in enumerate(ids):
        put_frames(source / FRAMES / "video_ret" / name / video, 9, n)
    asked = [
        Asked(text, task.query_instruction, "", {video: 1.0})
        for text, video in zip(("a man", "a dog"), ids, strict=True)
    ]
    names = [(video, "") for video in ids]
    return Case(task, asked, names, task.target_instruction, "8 frames")


def didemo(source: Path) -> Case:
    ids = ("12@N03_1.2", "7")
    rows = [
        {"video": f"videos/{ids[0]}.mp4", "caption": "a man"},
        {"video": f"{ids[1]}.avi", "caption": "a dog"},
    ]
    return _retrieval(source, "DiDeMo", ids, rows)


def msrvtt(source: Path) -> Case:
    rows = [
        {"video_id": "v0", "video": "v0.mp4", "caption": "a man"},
        {"video_id": "v1", "video": "v1.mp4", "caption": "a dog"},
    ]
    return _retrieval(source, "MSR-VTT", ("v0", "v1"), rows)


def msvd(source: Path) -> Case:
    rows = [
        {"video_id": "v0", "video": "v0.avi", "caption": ["a man", "someone"]},
        {"video_id": "v1", "video": "v1.avi", "caption": ["a dog"]},
    ]
    return _retrieval(source, "MSVD", ("v0", "v1"), rows)


def vatex(source: Path) -> Case:
    rows = [{"videoID": "v0", "enCap": ["a man", "x"]}, {"videoID": "v1", "enCap": ["a dog"]}]
    return _retrieval(source, "VATEX", ("v0", "v1"), rows)


def youcook2(source: Path) -> Case:
    rows = [
        {"id": "c_0", "video_path": "x/c.mp4", "sentence": "a man"},
        {"id": "c_1", "video_path": "x/c.mp4", "sentence": "a dog"},
    ]
    return _retrieval(source, "YouCook2", ("c_0", "c_1"), rows)


def moment_retrieval(source: Path) -> Case:
    task = counted("Charades-STA", 1, 3)
    rows = [{"query": "he sits", "video_path": "/data/clips/AB.C.mp4"}]
    put_rows(repository(source, task.source) / "charades_sta_test.jsonl", rows)
    home = f"{FRAMES}/video_mret/Charades_STA/AB.C"
    clips = [f"{home}/{name}" for name in ("negative_2", "negative_10", "positive")]
    for n, folder in enumerate([f"{home}/query", *clips]):
        put_frames(source / folder, 4, n)
    put(source / home / "readme.txt", b"no clip")
    asked = Asked("he sits", task.query_instruction, "4 frames", {clips[2]: 1.0}, clips)
    names = [(clip, "") for clip in clips]
    return Case(task, [asked], names, "Understand the content of the provided video.", "4 frames")


def momentseeker(source: Path) -> Case:
    """All saved frames are used; a query may hold an image or a video."""
    task = counted("MomentSeeker", 3, None)
    home = f"{FRAMES}/video_mret/MomentSeeker"
    clips = [f"m/{n}.mp4" for n in range(3)]
    rows = [
        {"query": text, "input_frames": extra, "negative_frames": [{"output_path": clips[2]}],
         "positive_frames": [{"output_path": clip} for clip in clips[:2]]}
        for text, extra in (("t", ""), ("i", "7.jpg"), ("v", "m/9.mp4"))
    ]  # fmt: skip
    put_rows(repository(source, task.source) / "momentseeker.jsonl", rows)
    put(source / home / "query_7.jpg", picture(9, "JPEG"))
    for n in (0, 1, 2, 9):
        put_frames(source / home / f"video_frames/m_{n}", 10, n)
    names = [f"{home}/video_frames/m_{n}" for n in range(3)]
    right = dict.fromkeys(names[:2], 1.0)
    asked = [
        Asked("t", "Find the clip that corresponds to the given text:", "", right, names),
        Asked("i", "Select the video clip that aligns with the given text and image:", "image",
              right, names),
        Asked("v", "Find the clip that corresponds to the given sentence and video segment:",
              "10 frames", right, names),
    ]  # fmt: skip
    see = "Understand the content of the provided video clip."
    return Case(task, asked, [(name, "") for name in names], see, "10 frames")
