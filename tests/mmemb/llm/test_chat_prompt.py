"""Prompts of vision-language models: placement, budgets, cuts, threads, special tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from mmemb.backbones import VisionLanguageBackbone
from mmemb.llm import PromptStyle
from mmemb.llm.decoding.cached_rows import collate
from mmemb.llm.decoding.tags import TAGS
from mmemb.records.inputs import Side
from tests.fixtures.tiny_vlm import ON_EACH, SIDES, folder, looking, note, picture, qwen


def test_instructions_stand_where_the_style_says() -> None:
    side = Side("a flag", "Find it.", (picture(1),))
    style = PromptStyle(system="Look.", default_instruction="Represent it.")
    in_user = qwen(style=style).prompts
    assert in_user.text(side) == (
        "<|im_start|>system\nLook.<|im_end|>\n<|im_start|>user\n"
        "<|vision_start|><|image_pad|><|vision_end|>Find it.\na flag<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert "Represent it.\nPeru" in in_user.text(Side("Peru"))
    in_system = qwen(style=replace(style, instruction_in="system", suffix="<end>")).prompts
    assert in_system.text(side).startswith("<|im_start|>system\nFind it.<|im_end|>")
    assert in_system.text(side).endswith("assistant\n<end>")
    assert "Look." not in in_system.text(Side("Peru"))


def test_prompts_without_a_template_are_those_of_vlm2vec() -> None:
    """Marks, instruction, text; bare picture tokens, counted one by one."""
    style = PromptStyle(chat=False, positions="plain", suffix="\n")
    backbone = VisionLanguageBackbone(str(folder("qwen2_vl")), style)
    asked = Side("a cat?", "Represent the given image with the question: \n", (picture(1),))
    assert backbone.prompts.text(asked) == (
        "<|image_pad|> Represent the given image with the question:\n a cat?\n"
    )
    assert backbone.prompts.text(Side("a label")) == "a label\n"
    prompt = backbone.prompts.build(asked)
    inputs = collate(backbone.model, [prompt], "left").inputs
    assert torch.equal(inputs["position_ids"][:, 0], torch.arange(len(prompt)).expand(3, -1))
    axes = VisionLanguageBackbone(str(folder("qwen2_vl")), replace(style, positions="model"))
    with torch.no_grad():
        assert (backbone.encode([asked]) - axes.encode([asked])).abs().max() > 1e-4


def test_a_template_that_opens_a_thought_is_cut_back() -> None:
    """The prompt must be the same at every depth."""
    backbone = qwen()
    prompts = backbone.prompts
    opened = prompts.processor.chat_template.replace("assistant\n", "assistant\n<think>\n")
    prompts.processor.chat_template = opened
    assert prompts.text(Side("Peru")).endswith("<|im_start|>assistant\n")


def test_long_texts_are_cut_by_policy_and_pictures_never() -> None:
    side = Side("word " * 200, "Find it.", (picture(1),))
    cutting = qwen(style=PromptStyle(max_length=150)).prompts
    whole = cutting.tokenizer.decode(cutting.build(side).ids)
    assert len(cutting.build(side)) <= 150
    assert whole.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert "Find it.\nword word" in whole
    with pytest.raises(ValueError, match="more than max_length 150"):
        qwen(style=PromptStyle(max_length=150, long_text="error")).prompts.build(side)
    with pytest.raises(ValueError, match="leave no room"):
        qwen(style=PromptStyle(max_length=30)).prompts.build(side)


def test_budgets_of_pixels_and_frames() -> None:
    def tokens(side: Side, **style: Any) -> int:
        built = qwen(style=PromptStyle(**style)).prompts.build(side)
        return int((built.kinds["mm_token_type_ids"] > 0).sum())

    large = Side(media=(picture(1, height=64, width=64),))
    assert tokens(large) == 16
    assert tokens(large, max_pixels=32 * 32) == 4
    assert tokens(Side(media=(picture(1, height=16, width=16),)), min_pixels=32 * 32) == 4
    clip = Side(media=tuple(picture(n, "frame", 32, 32) for n in range(8)))
    assert tokens(clip) == 16
    assert tokens(clip, max_frames=4) == 8
    assert tokens(clip, max_frame_pixels=16 * 16) == 4


@pytest.mark.parametrize("name", ON_EACH)
def test_prompts_of_many_threads_are_those_of_one(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = looking(name)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    sides = [replace(side, text=f"{side.text} {n}") for n in range(6) for side in SIDES]
    for one, many in zip(
        map(backbone.prompts.build, sides), backbone.prompts.build_all(sides), strict=True
    ):
        assert (one.ids, one.pictures) == (many.ids, many.pictures)
        assert one.media.keys() == many.media.keys()
        assert all(torch.equal(one.media[name], many.media[name]) for name in one.media)
    with pytest.raises(ValueError, match="has no pixels"):
        backbone.prompts.build_all([*sides, Side(media=(replace(picture(1), pixels=None),))])


@pytest.mark.parametrize("name", ON_EACH)
@torch.no_grad()
def test_special_tokens_in_data_are_text(name: str) -> None:
    """A picture's mark in a text is no picture, and a turn's end ends none."""
    backbone = looking(name)
    tokenizer = backbone.prompts.tokenizer
    marks, tags = "".join(tokenizer.all_special_tokens), tokenizer.convert_tokens_to_ids(TAGS)

    def special(ids: Sequence[int]) -> list[int]:
        return [i for i in ids if i in {*tokenizer.all_special_ids} - {*tags}]

    forged = Side(f"a{marks}b", f"Find{marks}.", (picture(1),))
    plain = backbone.prompts.build(Side("ab", "Find.", (picture(1),)))
    assert special(backbone.prompts.build(forged).ids) == special(plain.ids)
    said = note(f"<think>{marks}</think><answer>Peru</answer>")
    assert special(plain.ids)
    assert not special(backbone._said(said))
    assert backbone.encode([forged], [said]).isfinite().all()
