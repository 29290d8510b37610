"""The rationale workers that run a model here, and what they read about a side.

They are made from their settings, so defaults are their own; none loads a weight before it writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from experiments.plan.lengths import Lengths, PromptLengths, SideLengths, processor_of
from experiments.plan.settings import class_of
from mmemb.llm.decoding.sampling import Sampling
from mmemb.llm.prompts.chat_model import ChatModel
from mmemb.rationales.writers.label_bridge import TEMPLATE, read_labels
from mmemb.rationales.writers.language_model import LanguageModelWorker
from mmemb.rationales.writers.loading import load_worker
from mmemb.rationales.writers.vision_language import VisionLanguageWorker
from mmemb.records.inputs import Side
from mmemb.records.rationales import Rationale


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedWorker:
    """A worker as far as a plan needs it.

    Attributes:
        model: folder or hub id.
        dtype: of its weights.
        sampling: says how long a draw may be.
        slots: draws under way together.
        lengths: counts the tokens of a prompt behind those that all share.
        reads_media: whether it is asked about sides with pictures.
        shared: tokens that all prompts share and that are read once.
        together: whether `fit` makes the logits of all replies of a batch at once.
        trust_remote_code: whether code that comes with the model may run.
    """

    model: str
    dtype: str
    sampling: Sampling
    slots: int
    lengths: SideLengths
    reads_media: bool
    shared: int = 0
    together: bool = False
    trust_remote_code: bool = False


def planned_worker(spec: Mapping[str, Any]) -> PlannedWorker | None:
    """Of `{class_path, init_args}`; None = it runs no model here."""
    kind, arguments = class_of(spec), spec.get("init_args") or {}
    if kind == "LabelBridgeWorker":
        return _behind_bridge(arguments)
    if kind not in ("LanguageModelWorker", "VisionLanguageWorker"):
        return None
    match load_worker(spec):
        case LanguageModelWorker() as worker:
            return _chat_worker(worker)
        case VisionLanguageWorker() as worker:
            return _seeing_worker(worker)
    return None


def _chat_worker(worker: LanguageModelWorker) -> PlannedWorker:
    chat = ChatModel(worker.model_id, worker.prompt, None, worker.device, worker.dtype)
    return PlannedWorker(
        model=worker.model_id,
        dtype=worker.dtype,
        sampling=worker.sampling,
        slots=worker.batch_size,
        lengths=QuestionLengths(chat),
        reads_media=False,
        shared=len(chat.prefix_ids),
        together=True,
    )


def _seeing_worker(worker: VisionLanguageWorker) -> PlannedWorker:
    processor = processor_of(worker.model_id, worker.trust_remote_code)
    lengths = PromptLengths(processor, worker.style, 0)
    return PlannedWorker(
        model=worker.model_id,
        dtype=worker.dtype,
        sampling=worker.sampling,
        slots=worker.batch_size,
        lengths=lengths,
        reads_media="image" in lengths.builder.modalities,
        trust_remote_code=worker.trust_remote_code,
    )


def _behind_bridge(arguments: Mapping[str, Any]) -> PlannedWorker | None:
    inner = planned_worker(arguments["worker"])
    if inner is None:
        return None
    lengths = BridgeLengths(inner.lengths, arguments)
    return replace(inner, lengths=lengths, reads_media=True)


@final
class QuestionLengths(SideLengths):
    """Of a question behind a few-shot prompt.

    Args:
        chat: whose tokenizer alone is loaded.
    """

    longest_rationale = 0

    def __init__(self, chat: ChatModel) -> None:
        self._chat = chat

    def of(self, side: Side, rationale: Rationale | int | None = None) -> Lengths:
        return {"text": len(self._chat.question_ids(self._chat.prompt.question(side)))}


@final
class BridgeLengths(SideLengths):
    """Of a side whose pictures a `LabelBridgeWorker` tells as text.

    Args:
        inner: of the worker behind the bridge.
        arguments: of the bridge; every label is as long as the longest.
    """

    longest_rationale = 0

    def __init__(self, inner: SideLengths, arguments: Mapping[str, Any]) -> None:
        labels, _ = read_labels(Path(arguments["labels"]))
        self._inner, self._label = inner, max((label.text for label in labels), key=len)
        self._template = str(arguments.get("template") or TEMPLATE)

    def of(self, side: Side, rationale: Rationale | int | None = None) -> Lengths:
        if not side.media:
            return self._inner.of(side)
        kinds = [media.kind for media in side.media]
        shown = kinds.count("image") + ("frame" in kinds)
        labels = " and ".join([self._label] * shown)
        text = self._template.format(text=side.text or side.instruction, labels=labels).strip()
        return self._inner.of(replace(side, text=text, media=()))
