"""Layouts of video classification, question answering and retrieval: saved frames, no video files.

Moments, whose candidates are clips of a video, are in `moments`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import final

from datamodules.lines import split_lines
from datamodules.prepare.mmeb.annotations import Row, repository
from datamodules.prepare.mmeb.frames import PictureFolder, first_folder
from datamodules.prepare.mmeb.plan import PlanBuilder, TaskPlan
from mmemb.benchmarks.mmeb_v2 import Task

FRAMES = "video-tasks/frames"
LABELS = "labels.txt"
"""Name of a file in a classification repository: class names that no query has, one a line."""

MVBENCH = (
    "episodic_reasoning", "action_sequence", "action_prediction", "action_antonym",
    "fine_grained_action", "unexpected_action", "object_existence", "object_interaction",
    "object_shuffle", "moving_direction", "action_localization", "scene_transition",
    "action_count", "moving_count", "moving_attribute", "state_change", "fine_grained_pose",
    "character_order", "egocentric_navigation", "counterfactual_inference",
)  # fmt: skip
"""Configs of MVBench, in the order in which their rows are counted."""

_GROUPS = {"V-CLS": "video_cls", "V-QA": "video_qa", "V-RET": "video_ret", "V-MRET": "video_mret"}
_FOLDERS = {"SmthSmthV2": "SSv2", "Charades-STA": "Charades_STA"}
_YES_NO = ("yes", "no")


def frame_folder(task: Task, source: Path) -> PictureFolder:
    """Folder of a task's frames, as the archives unpack or tidied up."""
    group, name = _GROUPS[task.meta_task], _FOLDERS.get(task.name, task.name)
    # Some archives hold folders of their makers' disks; these forms and a tidy one count.
    places = (
        f"{FRAMES}/{group}/{name}",
        f"{FRAMES}/{group}/{group}/{name}",
        f"{FRAMES}/{group}/data/ziyan/video_retrieval/{name}/frames",
        f"{FRAMES}/data/ziyan/video_retrieval/{name}/frames",
    )

    root = first_folder(source, places, task.name, f"{FRAMES}/{group}.tar.gz")
    return PictureFolder(source, root, task.frames)


def plan_classes(task: Task, source: Path) -> TaskPlan:
    """`video_classification`: all class names are candidates of every clip."""
    builder, folder = PlanBuilder(task, source), frame_folder(task, source)

    for row in builder.rows(("video_id", "pos_text")):
        video, label = row.name("video_id"), row.name("pos_text")
        builder.candidate(row.where, label, label)

        media = folder.frames(video)
        builder.query(row.where, (), {label: 1.0}, media=media, concept=video, answers=(label,))

    # Classes without a query are candidates as well: the benchmark counts all of them.
    labels = repository(task, source) / LABELS
    if labels.is_file():
        builder.read([labels])
        for label in _class_names(labels):
            builder.candidate(str(labels), label, label)
    return builder.finish()


def plan_listed_classes(task: Task, source: Path) -> TaskPlan:
    """`ssv2`: each row lists all class names; only the first rows count, `num_queries` of them."""
    builder, folder = PlanBuilder(task, source), frame_folder(task, source)
    rows = builder.rows(("video_id", "pos_text", "neg_text"))

    for row in islice(rows, task.num_queries):
        video, label, names = row.name("video_id"), row.name("pos_text"), row.texts("neg_text")
        for name in names:
            builder.candidate(row.where, name, name)

        media = folder.frames(video)
        builder.query(row.where, names, {label: 1.0}, media=media, concept=video, answers=(label,))
    return builder.finish()


def _class_names(path: Path) -> list[str]:
    lines = split_lines(path.read_bytes())
    try:
        return [line.decode() for line in lines if line]
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is no UTF-8 ({error}): expected class names, one a line."
        ) from None


@final
@dataclass(frozen=True, slots=True)
class _Question:
    """One row of question answering; names and texts of the options may differ."""

    video: str
    text: str
    names: Sequence[str]
    texts: Sequence[str]
    right: int


def plan_questions(task: Task, source: Path) -> TaskPlan:
    """`mvbench`, `videomme`, `nextqa`, `egoschema`, `activitynetqa`: a clip and its options."""
    builder, folder = PlanBuilder(task, source), frame_folder(task, source)
    columns, read = _QUESTIONS[task.layout]
    subsets = MVBENCH if task.layout == "mvbench" else (task.config,)

    for subset in subsets:
        for row in builder.rows(columns, subset):
            question = read(row)

            for name, text in zip(question.names, question.texts, strict=True):
                builder.candidate(row.where, name, text)
            # Frames of MVBench lie in a folder for each subset.
            video = f"{subset}/{question.video}" if task.layout == "mvbench" else question.video
            builder.query(
                row.where,
                question.names,
                {question.names[question.right]: 1.0},
                text=question.text,
                media=folder.frames(video),
                concept=video,
                answers=(question.texts[question.right],),
            )
    return builder.finish()


def plan_retrieval(task: Task, source: Path) -> TaskPlan:
    """`msrvtt`, `msvd`, `didemo`, `vatex`, `youcook2`: a caption looks for its video."""
    builder, folder = PlanBuilder(task, source), frame_folder(task, source)
    columns, read = _CAPTIONS[task.layout]

    for row in builder.rows(columns):
        name, text = read(row)
        media = folder.frames(name)
        builder.candidate(row.where, name, "", media, task.target_instruction)
        builder.query(row.where, (), {name: 1.0}, text=text)
    return builder.finish()


def _lettered(question: str, options: Sequence[str]) -> tuple[str, list[str]]:
    # The letters are part of what the benchmark encodes.
    lettered = [f"({chr(ord('A') + n)}) {option}" for n, option in enumerate(options)]
    return "\n".join([question, "Options:", *lettered]).rstrip(), lettered


def _mvbench(row: Row) -> _Question:
    options, answer = row.texts("candidates"), row.text("answer")
    if answer not in options:
        raise row.error(f"an answer among {options}", repr(answer))
    text, lettered = _lettered(row.text("question"), options)
    return _Question(row.name("video"), text, lettered, lettered, options.index(answer))


def _nextqa(row: Row) -> _Question:
    options = [row.text(f"a{n}") for n in range(5)]
    text, _ = _lettered(row.text("question"), options)
    return _Question(row.name("video"), text, options, options, row.index("answer", 5))


def _videomme(row: Row) -> _Question:
    options, letter = row.texts("options"), row.text("answer")
    letters = [chr(ord("A") + n) for n in range(len(options))]
    if letter not in letters:
        raise row.error(f"an answer among {letters}", repr(letter))
    text = "\n".join([row.text("question"), *options])
    bare = [_without_letter(row, option) for option in options]
    return _Question(row.name("videoID"), text, options, bare, letters.index(letter))


def _egoschema(row: Row) -> _Question:
    options = row.texts("option")
    text = row.text("question") + " ".join(options)  # nothing between: so it is in the benchmark
    bare = [_without_letter(row, option) for option in options]
    return _Question(row.name("video_idx"), text, options, bare, row.index("answer", len(options)))


def _activitynetqa(row: Row) -> _Question:
    answer = row.text("answer")
    if answer not in _YES_NO:
        raise row.error("the answer `yes` or `no`", repr(answer))
    text = row.text("question") + "? (A) yes; (B) no."
    video = f"v_{row.name('video_name')}"
    return _Question(video, text, _YES_NO, _YES_NO, _YES_NO.index(answer))


def _without_letter(row: Row, option: str) -> str:
    """`A. A cat.` -> `A cat`: the benchmark encodes it so."""
    _, separator, text = option.partition(". ")
    if not separator:
        raise row.error("options like `A. text`", repr(option))
    return text.strip(". ")


_QUESTIONS: Mapping[str, tuple[Sequence[str], Callable[[Row], _Question]]] = {
    "mvbench": (("video", "question", "candidates", "answer"), _mvbench),
    "nextqa": (("video", "question", "a0", "a1", "a2", "a3", "a4", "answer"), _nextqa),
    "videomme": (("videoID", "question", "options", "answer"), _videomme),
    "egoschema": (("video_idx", "question", "option", "answer"), _egoschema),
    "activitynetqa": (("video_name", "question", "answer"), _activitynetqa),
}
_CAPTIONS: Mapping[str, tuple[Sequence[str], Callable[[Row], tuple[str, str]]]] = {
    "msrvtt": (("video_id", "caption"), lambda row: (row.name("video_id"), row.text("caption"))),
    "msvd": (("video_id", "caption"), lambda row: (row.name("video_id"), row.texts("caption")[0])),
    "didemo": (
        ("video", "caption"),
        lambda row: (PurePosixPath(row.name("video")).stem, row.text("caption")),
    ),
    "vatex": (("videoID", "enCap"), lambda row: (row.name("videoID"), row.texts("enCap")[0])),
    "youcook2": (("id", "sentence"), lambda row: (row.name("id"), row.text("sentence"))),
}
