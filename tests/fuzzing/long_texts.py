"""Long texts: twice the text may cost at most 2.5 times the time, for whoever reads texts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any, ClassVar, final

import torch

from experiments.scoring.near_duplicates import text_key
from mmemb.backbones import OpenClipBackbone
from mmemb.llm import FewShotPrompt, PromptStyle
from mmemb.llm.prompts.chat_model import ChatModel
from mmemb.llm.prompts.chat_prompt import PromptBuilder
from mmemb.llm.prompts.special_tokens import as_text_anywhere
from mmemb.rationales.chat_api.reply import Reply
from mmemb.rationales.merge import merge_drafts
from mmemb.rationales.writers.server import tagged
from mmemb.records.inputs import Side
from mmemb.records.rationales import Rationale
from mmemb.selection.answers import names_target
from mmemb.selection.judge_prompt import JudgePrompts, JudgeStyle
from tests.fixtures.chat_server import write_prompts
from tests.fixtures.tiny_backbones import TINY, build_joint
from tests.fixtures.tiny_language_model import byte_tokenizer
from tests.fixtures.tiny_models import write_chat_model
from tests.fuzzing.kind import Kind
from tests.fuzzing.mutations import mutate_text

LETTERS = 20_000
MOST_TIMES, NOISE_S = 2.5, 0.05


@final
class LongTexts(Kind):
    """A text of a few letters, which is repeated."""

    name: ClassVar[str] = "long_texts"
    cpu_s: ClassVar[float] = 60.0

    def make_seeds(self) -> Sequence[bytes]:
        self._readers = readers(self.folder)
        shapes = ["word ", "w", "<think>", "</answer>", "<think><answer>", " ", "\n", "<|end|>"]
        shapes += ["[SEP]", "&amp;lt;", "!?", "1", "漢", "Aé🐈 ", "\u0315\u0300", "\u0f73"]
        return [shape.encode() for shape in shapes]

    def mutate(self, data: bytes, random: Random) -> bytes:
        return mutate_text(data.decode(errors="replace"), random)[:40].encode(errors="replace")

    def marks(self, data: bytes) -> Sequence[str]:
        return ("text",)

    @torch.inference_mode()
    def read(self, data: bytes) -> None:
        unit = data.decode(errors="replace") or "a"
        once, twice = (f"a{unit * (times * LETTERS // len(unit))}b" for times in (1, 2))
        for name, reader in self._readers.items():
            # The least of some tries: other processes take their share of the clock.
            short, long = float("inf"), float("inf")
            for _ in range(8):
                short = min(short, _seconds(reader, once))
                long = min(long, _seconds(reader, twice))
                if long <= MOST_TIMES * short + NOISE_S:
                    break
            else:
                raise AssertionError(f"{name}: {short:.3f} s, and of twice the text {long:.3f} s")


def _seconds(reader: Callable[[str], Any], text: str) -> float:
    start = time.process_time()
    with suppress(ValueError):
        reader(text)
    return time.process_time() - start


def readers(folder: Path) -> Mapping[str, Callable[[str], Any]]:
    """Whoever reads a text, with models of a few kilobytes."""
    config = json.loads(Path(TINY).read_text())
    config["text_cfg"] |= {"vocab_size": 49408, "context_length": 77}
    (folder / "clip.json").write_text(json.dumps(config))
    clip = OpenClipBackbone(str(folder / "clip.json")).eval()
    joint = build_joint(folder)
    few_shot = FewShotPrompt.load(write_prompts(folder) / "tags.json")
    chat = ChatModel(str(write_chat_model(folder / "chat")), few_shot, None, "cpu", "float32")
    builder = PromptBuilder(byte_tokenizer(), PromptStyle())
    judge = JudgePrompts(builder, JudgeStyle())
    return {
        "digest": lambda text: Side(text, text).digest,
        "rationale": lambda text: (_said(text).plain, _whole(text).plain),
        "folding": lambda text: merge_drafts([_said(text), _whole(text)]),
        "reply": lambda text: tagged(few_shot, Reply(text, text, 1, True)),
        "names_target": lambda text: names_target(text, ["Peru", text]),
        "text_key": text_key,
        "server": as_text_anywhere,
        "question": chat.question_ids,
        "taught reply": lambda text: chat.reply_ids(_whole(text)),
        "prompt": lambda text: builder.build(Side(text, "find")),
        "judge": lambda text: (
            judge.query(Side(text, text)),
            judge.ending(Side("a"), _whole(text)),
        ),
        "clip": lambda text: clip.encode([Side(text, text)], [_whole(text)]),
        "clip described": lambda text: clip.describe(Side(text), _whole(text)),
        "joint": lambda text: joint.sequences.build([Side(text, text)], [_whole(text)], 1),
    }


def _said(text: str) -> Rationale:
    return Rationale(text, "w", "m", "r", "p", "d", 0, 1)


def _whole(text: str) -> Rationale:
    return _said(f"<think>{text}</think><answer>{text}</answer>")
