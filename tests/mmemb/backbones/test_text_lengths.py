"""Every backbone says which texts it cuts, and its share is told from a sample."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmemb.backbones.base import Backbone
from mmemb.backbones.clip_tokenizer import ClipTokenizer
from mmemb.backbones.contract import check_contract
from mmemb.backbones.joint import JointEncoder
from mmemb.backbones.open_clip import OpenClipBackbone
from mmemb.backbones.text_lengths import cut_texts
from mmemb.records.inputs import Side
from tests.fixtures.tiny_backbones import build_clip, build_worded_clip, text_model


def build_short_joint(folder: Path) -> Backbone:
    return JointEncoder(text_model(folder), feature_dim=24, thumbnail_dim=12, max_text_tokens=40)


BUILDERS = {"bytes": build_clip, "words": build_worded_clip, "joint": build_short_joint}
LAST = {"bytes": " c, d", "words": " c, d", "joint": " paris, france"}
"""Two last words, of which each is one token."""


@pytest.mark.parametrize("name", BUILDERS)
def test_a_text_is_cut_exactly_where_it_is_said(name: str, tmp_path: Path) -> None:
    """Of two texts that differ in their last letter alone, a cut one hides the difference."""
    backbone = BUILDERS[name](tmp_path).eval()
    lengths = []
    for size in range(4, 60):
        pair = [Side("a" + " b" * size + last, "Find it.") for last in LAST[name].split(",")]
        length = backbone.text_length(pair[0])
        lengths.append(length.num_tokens)
        if abs(length.num_tokens - length.most) < 4:
            with torch.no_grad():
                left_D, right_D = backbone.encode(pair)
            assert (length.num_cut > 0) == torch.equal(left_D, right_D)
    assert min(lengths) < length.most < max(lengths)


def test_tokens_of_a_clip_are_those_of_its_tokenizer(tmp_path: Path) -> None:
    backbone = build_worded_clip(tmp_path)
    assert isinstance(backbone.tokenizer, ClipTokenizer)
    for text in ("!", "a flag!!", "flag " * 500, "na\xefve caf\xe9 &lt;end_of_text&gt;"):
        expected = backbone.tokenizer.num_tokens(text)
        assert backbone.text_length(Side(text)) == (expected, 24)


def test_the_share_of_cut_texts_is_told(tmp_path: Path) -> None:
    backbone = build_worded_clip(tmp_path)
    sides = [Side("short")] * 3 + [Side("flag " * 30), Side("")]
    assert cut_texts(backbone, sides, "targets").startswith(
        "longer than the 24 tokens that OpenClipBackbone reads, so that their end is lost: 1 of 4 "
        "texts of targets (25 %); the longest has 32: 'flag flag"
    )
    assert cut_texts(backbone, sides[:3], "targets") == ""


def test_a_backbone_that_hides_its_bound_breaks_a_promise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = build_clip(tmp_path)
    promise = "it says which texts it cuts"
    assert [f.holds for f in check_contract(backbone) if f.promise == promise] == [True]
    monkeypatch.setattr(OpenClipBackbone, "text_length", lambda self, side: None)
    [found] = [f for f in check_contract(backbone) if f.promise == promise]
    assert (found.holds, found.seen) == (False, "it names no bound; a longer text is cut")
