"""Additions of profile `full` of the pocket benchmark to `mini`: clips, a third style, cities.

Concepts are cut as in `mini`, so a concept lies in the same split of both.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from datamodules.prepare.pocket import tasks as mini
from datamodules.prepare.pocket.tasks import FLAG_GALLERY, Question
from mmemb.records.pairs import EvaluationTask

NUM_FRAMES = 8
"""Number of frames of a clip, evenly spaced over its whole length."""

CITY_QUESTION = Question(
    "flag-city-t2i", "city", "the flag of the country where the city of {} lies"
)
"""Asks by the two largest cities of a country that are not its capital."""

TEXT_QUESTIONS = (*mini.TEXT_QUESTIONS, CITY_QUESTION)

CLIP_GALLERY = "clips"
TRAIN_CLIP_GALLERY = "clips-train"

CLIP_INSTRUCTIONS = {
    "anim-t2v": "Find the clip.",
    "anim-group": "Name the group that this animated emoji belongs to.",
}

CAPS: Mapping[str, Mapping[str, int]] = {
    "flag-city-t2i": {"train": 60, "gate": 40, "calibration": 30, "test": 100},
    "emoji-noto": {"val": 20, "gate": 30, "calibration": 30, "test": 100},
}
"""Caps of the added tasks, in the form of `CAPS` of `mini`."""

_BRIDGED = ("flag-capital", "flag-currency")
"""Questions about a picture, which the reasoner reads through its nearest label (`LabelBridge`)."""

TASKS = (
    *(replace(task, think=task.think or task.name in _BRIDGED) for task in mini.TASKS),
    EvaluationTask(CITY_QUESTION.task, "I-RET", FLAG_GALLERY, think=True),
    EvaluationTask("emoji-noto", "I-RET", "emoji"),
    EvaluationTask("anim-group", "V-CLS", "emoji-groups"),
    EvaluationTask("anim-t2v", "V-RET", CLIP_GALLERY),
)
"""All tasks of profile `full`: real as shipped; the clips are drawn animation, no camera video."""
