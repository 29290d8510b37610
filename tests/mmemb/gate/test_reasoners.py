"""Two reasoners: which one a gate gets, and that their steps hold nothing about a batch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from mmemb.backbones import Backbone
from mmemb.gate.reasoners import (
    OnePassReasoner,
    Reasoner,
    TwoPassReasoner,
    Written,
    make_reasoner,
)
from mmemb.rationales import SelfWriter
from mmemb.rationales.writers.base import RationaleSource
from mmemb.records.inputs import Side
from tests.fixtures.tiny_embedder import clip
from tests.fixtures.tiny_knower import Knower
from tests.fixtures.tiny_vlm import babbling

SIDES = [Side("the capital of Peru"), Side("the flag of Chad"), Side("a lake")]
DEPTHS = torch.tensor([1, 0, 1])


@pytest.fixture(scope="module", params=[TwoPassReasoner, OnePassReasoner])
def reasoner(request: pytest.FixtureRequest) -> Reasoner:
    torch.manual_seed(0)
    if request.param is TwoPassReasoner:
        return TwoPassReasoner(clip(Path()).eval(), {"full": Knower()})
    return OnePassReasoner(babbling("qwen3_vl"), {"full": SelfWriter(8)})


@torch.inference_mode()
def test_steps_give_vectors_of_the_backbone(reasoner: Reasoner) -> None:
    backbone: Backbone = reasoner.backbone
    direct = reasoner.embed(SIDES)
    written = reasoner.write(direct, DEPTHS)
    assert [note is not None for note in written.rationales] == [True, False, True]

    vectors_BD = reasoner.read(direct, written)
    assert (direct.vectors_BD - backbone.encode(SIDES)).abs().max() < 1e-5
    assert (vectors_BD - backbone.encode(SIDES, written.rationales)).abs().max() < 1e-5
    assert (vectors_BD - direct.vectors_BD)[[0, 2]].abs().max() > 1e-3


@torch.inference_mode()
def test_a_step_can_be_taken_again(reasoner: Reasoner) -> None:
    """Another decision about the same direct vectors is as if it were the first."""
    direct = reasoner.embed(SIDES)
    before_BD = direct.vectors_BD.clone()
    reasoner.read(direct, reasoner.write(direct, torch.tensor([1, 1, 1])))
    assert torch.equal(direct.vectors_BD, before_BD)

    again, first = reasoner.write(direct, DEPTHS), reasoner.write(reasoner.embed(SIDES), DEPTHS)
    assert again.rationales == first.rationales
    assert torch.equal(reasoner.read(direct, again), reasoner.read(direct, first))


@torch.inference_mode()
def test_rationales_of_earlier_are_read_like_live_ones(reasoner: Reasoner) -> None:
    direct = reasoner.embed(SIDES)
    live = reasoner.write(direct, DEPTHS)
    earlier = Written(DEPTHS, live.rationales)
    difference_BD = reasoner.read(direct, earlier) - reasoner.read(direct, live)
    assert difference_BD.abs().max() < 1e-5


def test_a_gate_gets_the_reasoner_that_its_writers_ask_for(tmp_path: Path) -> None:
    writes, embeds = babbling("qwen3_vl"), clip(tmp_path)
    two_passes: Mapping[str, RationaleSource] = {"short": Knower(), "full": Knower()}
    assert isinstance(make_reasoner(embeds, two_passes), TwoPassReasoner)
    assert isinstance(make_reasoner(writes, two_passes), TwoPassReasoner)
    one_pass = make_reasoner(writes, {"short": SelfWriter(4), "full": SelfWriter(9)})
    assert isinstance(one_pass, OnePassReasoner)
    assert one_pass.longest == {"short": 4, "full": 9}
    assert one_pass.sampling.max_new_tokens == 9
    with pytest.raises(ValueError, match="at every depth or at none"):
        make_reasoner(writes, {"short": Knower(), "full": SelfWriter()})
    with pytest.raises(ValueError, match="the backbone is a OpenClipBackbone"):
        make_reasoner(embeds, {"full": SelfWriter()})

    class Source(RationaleSource):
        def config(self) -> dict[str, Any]:
            return {}

    with pytest.raises(ValueError, match="Source is no writer: derive it from RationaleWriter"):
        make_reasoner(embeds, {"short": Source(), "full": Knower()})


def test_a_side_is_eligible_if_every_depth_can_read_it() -> None:
    reasoner = make_reasoner(clip(Path()), {"full": Knower()})
    assert reasoner.can_reason(SIDES[0])
    assert not reasoner.can_reason(Side())
    with pytest.raises(ValueError, match="writer 'self' has no hidden state"):
        make_reasoner(babbling("qwen3_vl"), {"full": SelfWriter()}).prompt_states(SIDES)
