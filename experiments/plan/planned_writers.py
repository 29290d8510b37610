"""The rationale writers that run a model in this process, and the lengths of their prompts.

Writers are made from their settings, so their defaults hold; none loads weights before it writes.
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
from mmemb.rationales.writers.language_model import LanguageModelWriter
from mmemb.rationales.writers.loading import load_writer
from mmemb.rationales.writers.vision_language import VisionLanguageWriter
from mmemb.records.inputs import Side
from mmemb.records.rationales import Rationale


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedWriter:
    """A writer as far as a plan needs it.

    Attributes:
        model: folder or hub id.
        dtype: of its weights.
        sampling: bounds the tokens of a draw.
        slots: draws that are decoded together.
        lengths: counts the tokens of a prompt without those that all prompts share.
        reads_media: True if the writer is asked about sides with pictures.
        shared: tokens that all prompts share; they are read once.
        together: True if `fit` makes the logits of all replies of a batch at once.
        trust_remote_code: True if code that comes with the model may run.
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


def planned_writer(spec: Mapping[str, Any]) -> PlannedWriter | None:
    """Returns the writer that a configuration names; None = no model runs in this process.

    Args:
        spec: its `{class_path, init_args}`.
    """
    kind, arguments = class_of(spec), spec.get("init_args") or {}
    if kind == "LabelBridgeWriter":
        return _behind_bridge(arguments)
    if kind not in ("LanguageModelWriter", "VisionLanguageWriter"):
        return None

    # A configuration may leave settings out, so they are taken from the writer that it makes.
    fields: dict[str, Any]
    match load_writer(spec):
        case LanguageModelWriter() as writer:
            chat = ChatModel(writer.model_id, writer.prompt, None, writer.device, writer.dtype)
            fields = {"lengths": QuestionLengths(chat), "shared": len(chat.prefix_ids)}
            fields |= {"reads_media": False, "together": True}
        case VisionLanguageWriter() as writer:
            # The prompt of a writer holds no rationale, so the bound on rationales is 0.
            processor = processor_of(writer.model_id, writer.trust_remote_code)
            lengths = PromptLengths(processor, writer.style, 0)
            fields = {"lengths": lengths, "trust_remote_code": writer.trust_remote_code}
            fields |= {"reads_media": "image" in lengths.builder.modalities}

    return PlannedWriter(
        model=writer.model_id,
        dtype=writer.dtype,
        sampling=writer.sampling,
        slots=writer.batch_size,
        **fields,
    )


def _behind_bridge(arguments: Mapping[str, Any]) -> PlannedWriter | None:
    inner = planned_writer(arguments["writer"])
    if inner is None:
        return None

    # The bridge turns pictures into words, so a writer without vision is asked about all rows.
    lengths = BridgeLengths(inner.lengths, arguments)
    return replace(inner, lengths=lengths, reads_media=True)


@final
class QuestionLengths(SideLengths):
    """Lengths of questions behind a few-shot prompt.

    Args:
        chat: the chat model; only its tokenizer is loaded.
    """

    longest_rationale = 0

    def __init__(self, chat: ChatModel) -> None:
        self._chat = chat

    def of(self, side: Side, rationale: Rationale | int | None = None) -> Lengths:
        return {"text": len(self._chat.question_ids(self._chat.prompt.question(side)))}


@final
class BridgeLengths(SideLengths):
    """Lengths of sides whose pictures a `LabelBridgeWriter` puts into words.

    Args:
        inner: lengths of the writer behind the bridge.
        arguments: of the bridge; every label is taken to be as long as the longest.
    """

    longest_rationale = 0

    def __init__(self, inner: SideLengths, arguments: Mapping[str, Any]) -> None:
        labels, _ = read_labels(Path(arguments["labels"]))
        self._inner, self._label = inner, max((label.text for label in labels), key=len)
        self._template = str(arguments.get("template") or TEMPLATE)

    def of(self, side: Side, rationale: Rationale | int | None = None) -> Lengths:
        if not side.media:
            return self._inner.of(side)

        # A clip has one label, whatever the number of its frames is.
        kinds = [media.kind for media in side.media]
        count = kinds.count("image") + ("frame" in kinds)
        labels = " and ".join([self._label] * count)
        text = self._template.format(text=side.text or side.instruction, labels=labels).strip()
        return self._inner.of(replace(side, text=text, media=()))
