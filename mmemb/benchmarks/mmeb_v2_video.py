"""The 18 video tasks of MMEB-V2: hit@1, eight evenly spaced frames a clip."""

from __future__ import annotations

from typing import Any

from mmemb.benchmarks.mmeb_v2_task import Task, row

_OWNER = "VLM2Vec"
_VIDEO = "Understand the content of the provided video."
_CLIP = "Understand the content of the provided video clip."
_ANSWER = (
    "Given a video and a question, select the most accurate answer from the provided candidates. "
    "Return only the exact text of your chosen answer. Question: "
)
_MOMENT = "Find the clip that corresponds to the described scene in the given video:"

MOMENTSEEKER_INSTRUCTIONS = {
    "T": "Find the clip that corresponds to the given text:",
    "IT": "Select the video clip that aligns with the given text and image:",
    "VT": "Find the clip that corresponds to the given sentence and video segment:",
}
"""By what a query of MomentSeeker holds."""


def _video(name: str, *columns: Any, local: bool = False, **fields: Any) -> Task:
    defaults = {"source": f"{_OWNER}/{name}", "frames": 8}
    return row(name, *columns, modality="video", local=local, **(defaults | fields))


VIDEO_TASKS = (
    # Classification: all queries share the labels of the data set.
    _video(
        "K700", "V-CLS", "video_classification", "V>T",
        "Recognize the category of the video content.", 1000, 700, source=f"{_OWNER}/Kinetics-700",
    ),
    _video(
        "SmthSmthV2", "V-CLS", "ssv2", "V>T",
        "What actions or object interactions are being performed by the person in the video?",
        1000, 174, local=True,
    ),
    _video(
        "HMDB51", "V-CLS", "video_classification", "V>T",
        "What actions or objects interactions are the person in the video doing?", 1000, 51,
    ),
    _video(
        "UCF101", "V-CLS", "video_classification", "V>T",
        "What activities or sports are being performed by the person in the video?", 1000, 101,
    ),
    _video(
        "Breakfast", "V-CLS", "video_classification", "V>T",
        "Recognize the breakfast type that the person is cooking in the video. ", 433, 10,
    ),
    # Question answering: each query has a few answers of its own.
    _video(
        "MVBench", "V-QA", "mvbench", "VT>T", _ANSWER, 4000, None, local=True, split="train",
    ),
    _video("Video-MME", "V-QA", "videomme", "VT>T", _ANSWER, 2700, 4, local=True),
    _video("NExTQA", "V-QA", "nextqa", "VT>T", _ANSWER, 8564, 5, local=True, config="MC"),
    _video("EgoSchema", "V-QA", "egoschema", "VT>T", _ANSWER, 500, 5, local=True, config="Subset"),
    _video("ActivityNetQA", "V-QA", "activitynetqa", "VT>T", _ANSWER, 1000, 2, local=True),
    # Retrieval: a text ranks all clips.
    _video(
        "DiDeMo", "V-RET", "didemo", "T>V",
        "Find a video that includes the following described scenes:", 1004, 1004,
        target_instruction=_VIDEO,
    ),
    _video(
        "MSR-VTT", "V-RET", "msrvtt", "T>V",
        "Find a video that contains the following visual content:", 1000, 1000,
        config="test_1k", target_instruction=_VIDEO,
    ),
    _video(
        "MSVD", "V-RET", "msvd", "T>V",
        "Find the video snippet that corresponds to the given summary:", 670, 670,
        target_instruction=_VIDEO,
    ),
    _video(
        "VATEX", "V-RET", "vatex", "T>V", "Select a video that fits the description provided:",
        4478, 4478, target_instruction=_VIDEO,
    ),
    _video(
        "YouCook2", "V-RET", "youcook2", "T>V",
        "Find a video that demonstrates the following action while making a recipe:", 3179, 3179,
        source="lmms-lab/YouCook2", split="val", target_instruction=_VIDEO,
    ),
    # Moment retrieval: each query has a few clips of its own.
    _video(
        "QVHighlight", "V-MRET", "moment_retrieval", "VT>V", _MOMENT, 1083, 10, local=True,
        target_instruction=_VIDEO,
    ),
    _video(
        "Charades-STA", "V-MRET", "moment_retrieval", "VT>V", _MOMENT, 727, 10, local=True,
        target_instruction=_VIDEO,
    ),
    _video(
        "MomentSeeker", "V-MRET", "momentseeker", "VT>V", MOMENTSEEKER_INSTRUCTIONS["T"], 1602,
        None, local=True, target_instruction=_CLIP, frames=None,
    ),
)  # fmt: skip
