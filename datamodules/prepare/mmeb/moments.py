"""Layouts of moment retrieval: a query's candidates are clips, a folder of frames each."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from datamodules.prepare.mmeb.annotations import Row
from datamodules.prepare.mmeb.frames import PictureFolder, natural_key
from datamodules.prepare.mmeb.plan import NO_MEDIA, Media, PlanBuilder, TaskPlan
from datamodules.prepare.mmeb.video import frame_folder
from mmemb.benchmarks.mmeb_v2 import Task
from mmemb.benchmarks.mmeb_v2_video import MOMENTSEEKER_INSTRUCTIONS

_QUERY, _POSITIVE = "query", "positive"


def plan_moments(task: Task, source: Path) -> TaskPlan:
    """`moment_retrieval`: `VIDEO/query` is asked about, `VIDEO/positive*` is right, the rest wrong.

    Candidates come in natural order of their folders' names: the benchmark has none.
    """
    builder, folder = PlanBuilder(task, source), frame_folder(task, source)

    for row in builder.rows(("query", "video_path")):
        video = PurePosixPath(row.name("video_path")).stem
        clips, media = _clips(folder.path(video)), folder.frames(f"{video}/{_QUERY}")

        names = [folder.name_of(clip) for clip in clips]
        for clip, name in zip(clips, names, strict=True):
            frames = folder.frames(f"{video}/{clip.name}")
            builder.candidate(row.where, name, "", frames, task.target_instruction)

        right = {
            n: 1.0 for clip, n in zip(clips, names, strict=True) if clip.name.startswith(_POSITIVE)
        }

        if not clips:
            # A problem of the media and not an error: `--on-error skip` leaves such a query out.
            media = Media(problem=f"{folder.path(video)} holds no folders of clips.")
        text = row.text("query")
        builder.query(row.where, names, right, text=text, media=media, concept=video)
    return builder.finish()


def plan_momentseeker(task: Task, source: Path) -> TaskPlan:
    """`momentseeker`: rows list right and wrong clips; a query may hold an image or a video."""
    builder, folder = PlanBuilder(task, source), frame_folder(task, source)
    columns = ("query", "positive_frames", "negative_frames", "input_frames")
    for row in builder.rows(columns):
        right, wrong = (_listed(row, c) for c in columns[1:3])
        names = [folder.name_of(folder.path(clip)) for clip in right + wrong]
        # Right clips come first, so that the slice below finds them.
        for clip, name in zip(right + wrong, names, strict=True):
            builder.candidate(row.where, name, "", folder.frames(clip), task.target_instruction)

        kind, media = _asked(row, folder)
        builder.query(
            row.where,
            names,
            dict.fromkeys(names[: len(right)], 1.0),
            text=row.text("query"),
            media=media,
            instruction=MOMENTSEEKER_INSTRUCTIONS[kind],
        )
    return builder.finish()


def _clips(video: Path) -> list[Path]:
    # An archive that is not unpacked shows as a query without clips.
    if not video.is_dir():
        return []
    clips = [path for path in video.iterdir() if path.is_dir() and path.name != _QUERY]
    return sorted(clips, key=lambda path: natural_key(path.name))


def _listed(row: Row, column: str) -> list[str]:
    # The column is nested and comes from elsewhere, so any type may stand at any depth.
    try:
        paths = [entry["output_path"] for entry in row.values[column]]
        return [_clip_folder(path) for path in paths]
    except (TypeError, KeyError, AttributeError):
        raise row.error(
            f"a list of objects with `output_path` in {column!r}", repr(row.values[column])
        ) from None


def _clip_folder(path: str) -> str:
    """`movie/12.mp4` -> `video_frames/movie_12`."""
    return "video_frames/" + path.replace("/", "_").split(".mp4")[0]


def _asked(row: Row, folder: PictureFolder) -> tuple[str, Media]:
    """Returns a letter of the registry for the query's kind, and its media beside the text."""
    name = row.text("input_frames")
    if name.endswith(".mp4"):
        return "VT", folder.frames(_clip_folder(name))
    if name.endswith(".jpg"):
        return "IT", folder.image(f"query_{name}")
    return "T", NO_MEDIA
