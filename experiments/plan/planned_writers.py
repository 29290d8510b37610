"""The rationale writers that run a model here, and the lengths of their prompts.

Each is made from its settings, so its defaults hold; it loads no weights before it writes.
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


def planned_writer(spec: Mapping[str, Any]) -> PlannedWriter | None:
    """Returns the writer that a configuration names; None = it runs no model here.

    Args:
        spec: its `{class_path, init_args}`.
    """
    kind, arguments = class_of(spec), spec.get("init_args") or {}
    if kind == "LabelBridgeWriter":
        return _behind_bridge(arguments)
    if kind not in ("LanguageModelWriter", "VisionLanguageWriter"):
        return None

    # The writer itself has the defaults of what the configuration leaves out.
    parts: dict[str, Any]
    match load_writer(spec):
        case LanguageModelWriter() as writer:
            chat = ChatModel(writer.model_id, writer.prompt, None, writer.device, writer.dtype)
            parts = {"lengths": QuestionLengths(chat), "shared": len(chat.prefix_ids)}
            parts |= {"reads_media": False, "together": True}
        case VisionLanguageWriter() as writer:
            # A prompt of a writer holds no rationale, so its length has no bound to keep.
            processor = processor_of(writer.model_id, writer.trust_remote_code)
            lengths = PromptLengths(processor, writer.style, 0)
            parts = {"lengths": lengths, "trust_remote_code": writer.trust_remote_code}
            parts |= {"reads_media": "image" in lengths.builder.modalities}

    return PlannedWriter(
        model=writer.model_id,
        dtype=writer.dtype,
        sampling=writer.sampling,
        slots=writer.batch_size,
        **parts,
    )


def _behind_bridge(arguments: Mapping[str, Any]) -> PlannedWriter | None:
    inner = planned_writer(arguments["writer"])
    if inner is None:
        return None
    # Behind the bridge pictures have become words, so a writer without vision reads all rows.
    lengths = BridgeLengths(inner.lengths, arguments)
    return replace(inner, lengths=lengths, reads_media=True)


@final
class QuestionLengths(SideLengths):
    """Lengths of questions behind a few-shot prompt.

    Args:
        chat: of which only the tokenizer is loaded.
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
