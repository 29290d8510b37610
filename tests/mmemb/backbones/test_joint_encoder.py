"""JointEncoder: its tower, its sequences, and the second reading of the answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mmemb.backbones import EfficientNetTower, JointEncoder
from mmemb.backbones.sequences import SequenceBuilder
from mmemb.records.inputs import Media, Side
from tests.fixtures.tiny_backbones import (
    HELPFUL,
    build_joint,
    build_joint_with_tower,
    cached_picture,
    picture,
    pixels,
    rationale,
    tower,
    unit,
)


def test_cached_features_stand_for_pixels(tmp_path: Path) -> None:
    backbone = build_joint_with_tower(tmp_path).eval()
    fresh = picture(0)
    cached = Media("image", "x", features=backbone.tower([fresh.pixels])[0])
    both = backbone.encode([Side(media=(fresh,)), Side(media=(cached,))])
    torch.testing.assert_close(both[0], both[1], atol=1e-5, rtol=0)


def test_a_picture_passes_through_the_frozen_tower_once(tmp_path: Path) -> None:
    backbone = build_joint_with_tower(tmp_path).eval()
    known = cached_picture(2)
    sides = [Side("two", media=(picture(0), picture(1))), Side("one", media=(picture(0),))]
    sides += [Side("no picture")]
    read: list[int] = []
    backbone.tower.register_forward_hook(lambda _, pictures, __: read.append(len(pictures[0])))
    ready = backbone.with_features(sides)
    assert read == [2], "equal pictures are one"
    torch.testing.assert_close(backbone.encode(ready), backbone.encode(sides))
    assert read == [2, 3]
    assert backbone.with_features(ready) == ready
    assert backbone.with_features([Side(media=(known,))])[0].media[0] is known
    assert backbone.with_features([]) == []


def test_tower_tokens(tmp_path: Path) -> None:
    frozen = tower(tmp_path).train()
    tokens = frozen([pixels(0), pixels(1, 30, 30), pixels(2)])
    assert tokens.shape == (3, 6, 1280)
    torch.testing.assert_close(tokens[1:], frozen([pixels(1, 30, 30), pixels(2)]))
    assert not tokens[:, 5, 768:].any()
    assert tokens[:, 5].abs().max() <= 1
    assert not any(module.training for module in frozen.modules())
    white = frozen([torch.full((3, 9, 9), 255, dtype=torch.uint8)])
    torch.testing.assert_close(white[0, 5, :768], torch.ones(768))


def test_tower_takes_foreign_names_in_order_and_refuses_foreign_shapes(tmp_path: Path) -> None:
    named = tower(tmp_path)
    state = torch.load(tmp_path / "lite0.pth", weights_only=True)
    torch.save({f"x{i}": v for i, v in enumerate(state.values())}, tmp_path / "foreign.pt")
    renamed = EfficientNetTower(str(tmp_path / "foreign.pt"), image_size=32)
    assert torch.equal(named([pixels(0)]), renamed([pixels(0)]))
    with pytest.raises(FileNotFoundError, match="holds 2 weight files"):
        EfficientNetTower(str(tmp_path))
    torch.save({"x": torch.zeros(1)}, tmp_path / "foreign.pt")
    with pytest.raises(ValueError, match="do not fit EfficientNet-Lite0"):
        EfficientNetTower(str(tmp_path / "foreign.pt"))


class _Letters:
    """Stands in for a tokenizer: one token a letter."""

    cls_token_id, sep_token_id = 1, 2

    def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(c) for c in text if c != " "] for text in texts]}


def builder(policy: str = "truncate", limit: int = 4) -> SequenceBuilder:
    return SequenceBuilder(_Letters(), 1000, 20, 5, limit, policy)


def test_sequence_order_and_segments() -> None:
    side = Side("b", "a", (picture(0),))
    note = rationale("<think>c</think><answer>de</answer>")
    sides = [Side("x", media=(picture(1),)), side]
    rows, restated = builder().build(sides, [None, note], tokens_each=2)
    a, b, c, d, e = map(ord, "abcde")
    assert rows[1].ids == [1, 1002, 1003, a, b, 2, c, d, e, 2]
    assert rows[1].segments == [0] * 6 + [1] * 4
    assert list(restated) == [1]
    assert restated[1].ids == [1, a, d, e, 2]


def test_long_rationale_policies() -> None:
    note = rationale("<think>abcdef</think><answer>xy</answer>")

    def tail(policy: str, limit: int) -> str:
        rows, _ = builder(policy, limit).build([Side("q")], [note], tokens_each=0)
        return "".join(chr(i) for i in rows[0].ids[3:-1])

    assert tail("truncate", 4) == "efxy"
    assert tail("truncate", 1) == "y"
    assert tail("drop", 4) == ""
    with pytest.raises(ValueError, match="more than max_rationale_tokens=4"):
        tail("error", 4)
    with pytest.raises(ValueError, match="long_rationale='cut' is unknown"):
        builder("cut")


def test_too_many_pictures_or_frames_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="reads at most 20"):
        builder().build([Side("q", media=(picture(0),) * 9)], [None], tokens_each=2)
    backbone = build_joint(tmp_path)
    with pytest.raises(ValueError, match="17 frames, more than max_frames=16"):
        backbone.encode([Side(media=(cached_picture(0, "frame"),) * 17)])
    wrong = Media("image", "x", features=torch.zeros(3, 25))
    with pytest.raises(ValueError, match="made by another tower"):
        backbone.encode([Side(media=(wrong,))])


def test_frames_are_read_in_order(tmp_path: Path) -> None:
    backbone = build_joint(tmp_path).eval()
    frames = tuple(cached_picture(seed, "frame") for seed in range(3))
    forth, back = backbone.encode([Side(media=frames), Side(media=frames[::-1])])
    assert forth @ back < 1 - 1e-6


@torch.no_grad()
def test_the_answer_is_read_once_more_without_the_question(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = build_joint(tmp_path).eval()
    side = Side("which flag", "find", (cached_picture(0),))
    backbone.answer_share = 0.0
    together, alone = backbone.encode([side, Side("france", "find")], [HELPFUL, None])
    backbone.answer_share = 0.25
    fused = backbone.encode([side], [HELPFUL])[0]
    torch.testing.assert_close(fused, unit(0.75 * together + 0.25 * alone), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="answer_share=1 must lie in"):
        JointEncoder(str(tmp_path / "bert"), answer_share=1)


def test_word_embeddings_are_frozen(tmp_path: Path) -> None:
    backbone = build_joint(tmp_path)
    assert not backbone.words.weight.requires_grad
    with pytest.raises(FileNotFoundError, match="no text encoder"):
        JointEncoder(str(tmp_path / "nothing"))


def test_no_text_spells_a_special_token(tmp_path: Path) -> None:
    backbone = build_joint(tmp_path).eval()
    special = set(backbone.sequences.tokenizer.all_special_ids)
    marks = " [SEP] [CLS] [PAD] a"
    note = rationale(f"<think>so{marks}</think><answer>france{marks}</answer>")
    side = Side(f"paris{marks}", f"find{marks}")
    rows, restated = backbone.sequences.build([side], [note], 2)
    start, end = (
        backbone.sequences.tokenizer.cls_token_id,
        backbone.sequences.tokenizer.sep_token_id,
    )
    unknown = backbone.sequences.tokenizer.unk_token_id  # brackets, for these few words
    for row, ends in ((rows[0], [start, end, end]), (restated[0], [start, end])):
        assert [i for i in row.ids if i in special - {unknown}] == ends
    vectors = backbone.encode([Side("paris"), Side("paris [SEP]"), Side("paris [PAD]")])
    assert (vectors[0] @ vectors[1:].T < 0.9999).all()


def test_long_texts_are_given_to_the_tokenizer_once(tmp_path: Path) -> None:
    builder = build_joint(tmp_path).sequences
    letters: list[int] = []

    class Counted:
        def __getattr__(self, name: str) -> Any:
            return getattr(builder.tokenizer, name)

        def __call__(self, texts: list[str], **settings: Any) -> Any:
            letters.append(sum(map(len, texts)))
            return builder.tokenizer(texts, **settings)

    text = "paris [SEP] " * 2_000
    counted = replace(builder, tokenizer=Counted(), max_text_tokens=8, max_rationale_tokens=8)
    counted.build([Side(text)], [rationale(f"<think>{text}</think><answer>{text}</answer>")], 2)
    assert sum(letters) <= 3 * len(text)
