"""Faulty data, settings and checkpoints of vision-language models end in one clear error."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mmemb.backbones import VisionLanguageBackbone
from mmemb.llm import PromptStyle
from mmemb.llm.decoding.sampling import Sampling
from mmemb.llm.prompts.pictures import clip_of, pixels_of
from mmemb.llm.prompts.special_tokens import as_text
from mmemb.rationales import VisionLanguageWriter
from mmemb.records.inputs import Side
from mmemb.records.rationales import FULL, GREEDY
from mmemb.selection import JudgeStyle, YesNoJudge
from tests.fixtures.tiny_models import write_chat_model
from tests.fixtures.tiny_vlm import CLIP, ON_EACH, SIDES, babbling, folder, note, picture

SAMPLING = Sampling(max_new_tokens=4, temperature=1.0, top_p=1.0, top_k=3)


def qwen(**style: Any) -> VisionLanguageBackbone:
    return VisionLanguageBackbone(str(folder("qwen3_vl")), PromptStyle(**style))


def judge(**settings: Any) -> YesNoJudge:
    return YesNoJudge(str(folder("qwen3_vl")), **settings)


@pytest.mark.parametrize("architecture", ON_EACH)
@torch.no_grad()
def test_a_still_clip_is_read(architecture: str) -> None:
    """Its frame is repeated, at the time of the first one, like an odd last frame."""
    style = PromptStyle(max_frames=1)
    backbone = VisionLanguageBackbone(str(folder(architecture)), style)
    sides = [Side("which?", media=CLIP[:1]), Side("which?", media=CLIP)]
    still, cut = map(backbone.prompts.build, sides)
    assert still.ids == cut.ids
    assert int((still.kinds["mm_token_type_ids"] > 0).sum()) == 4
    assert backbone.encode(sides).isfinite().all()
    times = backbone.prompts.tokenizer.decode(still.ids)
    assert ("<0.0 seconds>" in times) == architecture.startswith("qwen3")


@pytest.mark.parametrize(
    "architecture", [pytest.param("qwen2_vl", marks=pytest.mark.slow), "qwen3_vl"]
)
@pytest.mark.parametrize(("frames", "tokens"), [(1, 1), (8, 4)])
def test_a_budget_of_frames_is_of_each(architecture: str, frames: int, tokens: int) -> None:
    """Two frames are one step of time, and 16 x 16 pixels of it one token."""
    style = PromptStyle(max_frame_pixels=16 * 16)
    backbone = VisionLanguageBackbone(str(folder(architecture)), style)
    clip = Side("which?", media=tuple(picture(n, "frame", 64, 64) for n in range(frames)))
    kinds = backbone.prompts.build(clip).kinds["mm_token_type_ids"]
    assert int((kinds > 0).sum()) == tokens


def test_clips_are_filled_up_by_their_last_frame() -> None:
    frames = [pixels_of(media) for media in CLIP]
    assert torch.equal(clip_of(frames, 2), torch.stack(frames))
    filled = clip_of([frames[0], picture(7, height=16, width=8).pixels], 4)  # type: ignore[list-item]
    assert filled.shape == (4, 3, 32, 32)
    assert torch.equal(filled[3], filled[1])


@pytest.mark.parametrize(
    ("size", "kind"),
    [
        *((size, "image") for size in ((1000, 2), (1, 201), (7, 1400), (1, 60_000))),
        *((size, "frame") for size in ((1000, 2), (2, 1000), (1, 201), (7, 1400), (1, 60_000))),
        pytest.param((2, 1000), "image", marks=pytest.mark.slow),
    ],
)
def test_thin_pictures_are_bent_until_they_pass(kind: str, size: tuple[int, int]) -> None:
    thin = picture(1, kind, *size)
    qwen(max_length=10_000).prompts.build(Side("what?", media=(thin, thin)))
    height, width = pixels_of(thin).shape[1:]
    assert (height > width) == (size[0] > size[1])
    if (height, width) != size:
        assert max(height, width) <= 180 * min(height, width)
        assert height * width < 2 * size[0] * size[1], "no thin picture becomes a huge one"


def test_pictures_that_pass_stay_as_they_are() -> None:
    for size in ((40, 56), (1, 1), (1, 200), (1000, 5)):
        whole = picture(1, "image", *size)
        assert pixels_of(whole) is whole.pixels


def test_empty_pictures_are_named() -> None:
    for kind in ("image", "frame"):
        empty = picture(1, kind, 0, 5)
        with pytest.raises(ValueError, match=r"picture vlm-1 is empty: 5 x 0 pixels"):
            qwen().prompts.build(Side("what?", media=(empty,)))


def test_what_a_model_cannot_read_is_said_wherever_it_is_asked(tmp_path: Path) -> None:
    model = str(write_chat_model(tmp_path))
    backbone = VisionLanguageBackbone(model)
    with pytest.raises(ValueError, match="reads text only, but a side .*holds image"):
        backbone.describe(SIDES[1])
    bare = VisionLanguageBackbone(model, {"chat": False})
    with pytest.raises(ValueError, match="reads text only, but a side .*holds video"):
        bare.describe(SIDES[3])
    reader = YesNoJudge(model)
    for query, candidate in ((SIDES[1], SIDES[0]), (SIDES[0], SIDES[2])):
        with pytest.raises(ValueError, match="reads text only, but a side .*holds image"):
            reader.score([query], [[candidate]], [[]], ["a/b"])


@pytest.mark.parametrize(
    ("style", "said"),
    [
        ({"max_lenght": 9}, "unknown key 'max_lenght'. Did you mean max_length"),
        ({3: 9}, "unknown key 3"),
        ({"max_length": "many"}, "max_length 'many': expected a whole number"),
        ({"max_length": True}, "max_length True: expected a whole number"),
        ({"max_pixels": 1e6}, "max_pixels 1000000.0: expected a whole number, or null"),
        ({"system": None}, "system None: expected a text"),
        ({"chat": "no"}, "chat 'no': expected true or false"),
        ({"long_text": "cut"}, "long_text 'cut': expected truncate or error"),
        ({"template_arguments": "x"}, "template_arguments 'x': expected keys"),
        ({"max_pixels": -5}, "max_pixels is -5; expected a whole number, at least 1"),
        ({"max_frame_pixels": 0}, "max_frame_pixels is 0"),
        ({"max_frames": 0}, "max_frames is 0"),
        ({"max_pixels": 100, "min_pixels": 200}, "min_pixels 200 is more than max_pixels 100"),
        ({"frames_per_second": float("nan")}, "frames_per_second is nan"),
        ("x", "style is 'x'; expected keys and values"),
    ],
)
def test_a_wrong_style_is_explained(style: Any, said: str) -> None:
    for kind in (VisionLanguageBackbone, VisionLanguageWriter, PromptStyle.from_mapping):
        arguments = (style,) if kind == PromptStyle.from_mapping else ("nowhere", style)
        with pytest.raises(ValueError, match=re.escape(said)):
            kind(*arguments)  # type: ignore[operator]


def test_a_right_style_is_taken() -> None:
    style = PromptStyle(max_pixels=100, template_arguments={"enable_thinking": False})
    assert PromptStyle.from_mapping(style) is style
    assert PromptStyle.from_mapping({"frames_per_second": 2}) == PromptStyle()
    assert PromptStyle.from_mapping(None) == PromptStyle()


@pytest.mark.parametrize("value", [0, -5, 1.5])
def test_what_is_counted_is_at_least_one(value: Any) -> None:
    model = str(folder("qwen3_vl"))
    for name in ("max_rationale_tokens", "slots"):
        with pytest.raises(ValueError, match=f"{name} is {value}; expected a whole number"):
            VisionLanguageBackbone(model, **{name: value})
    with pytest.raises(ValueError, match=f"max_text_tokens is {value}"):
        JudgeStyle(max_text_tokens=value)
    with pytest.raises(ValueError, match="cached_pictures is -1"):
        VisionLanguageBackbone(model, cached_pictures=-1)


def test_a_broken_model_neither_writes_nor_judges() -> None:
    backbone = babbling("qwen3_vl")
    with torch.no_grad():
        backbone.model.get_output_embeddings().weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="NaN or infinity for the next token of a rationale"):
        backbone.generate(SIDES[:2], FULL, SAMPLING)
    reader = judge()
    with torch.no_grad():
        reader._model.get_output_embeddings().weight.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"NaN or infinity for the odds of yes .*what is it\?"):
        reader.score([SIDES[1]], [SIDES[:2]], [[]], ["a/b"])


def test_a_broken_model_writes_no_draws(tmp_path: Path) -> None:
    backbone = babbling("qwen3_vl")
    with torch.no_grad():
        backbone.model.get_output_embeddings().weight.fill_(torch.nan)
    backbone.save_pretrained(tmp_path)
    writer = VisionLanguageWriter(str(tmp_path / "model"), max_new_tokens=4)
    with pytest.raises(ValueError, match="NaN or infinity"):
        writer.write(SIDES[:1], torch.tensor([[GREEDY]]))


def test_undeclared_special_tokens_are_text_as_well(tmp_path: Path) -> None:
    """Some tokenizers add their marks as special, and do not name them among the special ones."""
    model = shutil.copytree(folder("qwen3_vl"), tmp_path / "model")
    path = model / "tokenizer_config.json"
    config = json.loads(path.read_text())
    assert config.pop("extra_special_tokens", None) or config.pop("additional_special_tokens")
    path.write_text(json.dumps(config))
    backbone = VisionLanguageBackbone(str(model))
    tokenizer = backbone.prompts.tokenizer
    assert "<|image_pad|>" not in tokenizer.all_special_tokens
    marks = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|im_start|>")
    forged = Side(f"a doc with {''.join(marks)}", media=(picture(1),))
    plain = backbone.prompts.build(replace(forged, text="a doc with"))
    ids = tokenizer.convert_tokens_to_ids(list(marks))
    forged_ids = backbone.prompts.build(forged).ids
    assert [forged_ids.count(i) for i in ids] == [plain.ids.count(i) for i in ids]
    assert not {*ids} & {*backbone._said(note(f"<answer>{marks[0]}</answer>"))}
    assert {*ids} <= backbone.end_ids, "nor is one written"
    assert as_text("a <|image_pad|>", tokenizer) == "a < |image_pad|>"


def test_marks_that_are_no_special_tokens_are_text_as_well() -> None:
    prompts = qwen(chat=False, image_mark="[picture]").prompts
    said = prompts.text(Side("see [picture] and <|vision_end|>", media=(picture(1),)))
    assert said == "[picture] see [ picture] and < |vision_end|>"


def test_a_query_without_candidates_is_named() -> None:
    with pytest.raises(ValueError, match=r"query 1 of 2 \(text 'hello there'\) has no candidates"):
        judge().score([SIDES[1], SIDES[0]], [[SIDES[2]], []], [[], []], ["a/b", "c/d"])


@pytest.mark.parametrize("words", ["yes", (True,), [1]])
def test_words_of_a_judge_are_a_list(words: Any) -> None:
    with pytest.raises(ValueError, match="expected a list of words, each in quotes"):
        JudgeStyle(yes=words)


def test_broken_unicode_is_named() -> None:
    broken, reader = Side("a cat \ud83d"), judge()
    for sides in ([broken], [Side("a", instruction="Find \udc00")]):
        with pytest.raises(ValueError, match="half of a surrogate pair"):
            qwen().encode(sides)
    for query, candidate in ((broken, SIDES[0]), (SIDES[0], broken)):
        with pytest.raises(ValueError, match=r"'a cat \\ud83d' holds half of a surrogate pair"):
            reader.score([query], [[candidate]], [[]], ["a/b"])
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        qwen(max_length=60).prompts.build(replace(broken, text=broken.text * 40))
    assert qwen().prompts.text(Side("naïve 🐈")).count("naïve 🐈") == 1
