"""Thinking and embedding in one sequence equals doing it in two calls."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from msgspec.structs import replace

from mmemb.backbones import VisionLanguageBackbone
from mmemb.backbones.generative import Thoughts
from mmemb.llm.decoding.cached_rows import collate
from mmemb.llm.decoding.sampling import Sampling
from mmemb.llm.decoding.tags import whole_text
from mmemb.records.inputs import Side
from mmemb.records.rationales import DIRECT, FULL, GREEDY, SHORT
from tests.fixtures.tiny_vlm import ON_EACH, SIDES, babbling

SAMPLING = Sampling(max_new_tokens=24, temperature=1.0, top_p=1.0, top_k=3)
MANY = [*SIDES, *(Side(f"{'so ' * n}number {n}") for n in range(7))]
DEPTHS = [(FULL, SHORT, DIRECT)[n % 3] for n in range(len(MANY))]


@pytest.fixture(params=ON_EACH)
def backbone(request: pytest.FixtureRequest) -> VisionLanguageBackbone:
    return babbling(request.param)


def think(
    backbone: VisionLanguageBackbone,
    sides: Sequence[Side],
    depths: Sequence[str],
    seeds: Sequence[int] | None = None,
) -> Thoughts:
    return backbone.think(backbone.read_prompts(sides, SAMPLING), depths, SAMPLING, seeds)


@torch.no_grad()
def test_one_pass_equals_two_calls(backbone: VisionLanguageBackbone) -> None:
    direct = backbone.read_prompts(MANY, SAMPLING)
    found = backbone.think(direct, DEPTHS, SAMPLING, seeds=list(range(len(MANY))))
    assert [r is None for r in found.rationales] == [d == DIRECT for d in DEPTHS]
    assert (direct.vectors_BD - backbone.encode(MANY)).abs().max() < 1e-5
    again = backbone.encode(MANY, found.rationales)
    assert (found.vectors_BD - again).abs().max() < 1e-5
    kinds = {(r.text[:7], r.text[-9:]) for r in found.rationales if r is not None}
    assert kinds == {("<think>", "</answer>"), ("<answer", "</answer>")}
    lengths = {r.num_tokens for r in found.rationales if r is not None}
    assert len(lengths) > 3, "the babble ends at different places"


@torch.no_grad()
def test_a_greedy_rationale_is_what_generate_writes(backbone: VisionLanguageBackbone) -> None:
    opening = backbone.prompts.tokenizer.encode("<think>", add_special_tokens=False)
    found = think(backbone, SIDES, [FULL] * len(SIDES))
    for side, rationale in zip(SIDES, found.rationales, strict=True):
        prompt = backbone.prompts.build(side).followed_by(opening)
        inputs = dict(collate(backbone.model, [prompt], "left").inputs)
        del inputs["position_ids"]
        written = backbone.model.generate(
            **inputs,
            max_new_tokens=SAMPLING.max_new_tokens,
            do_sample=False,
            eos_token_id=sorted(backbone.end_ids),
        )[0, len(prompt) :]
        text = "<think>" + backbone.prompts.tokenizer.decode(
            [t for t in written.tolist() if t not in backbone.end_ids]
        )
        assert rationale is not None
        assert rationale.text == whole_text(replace(rationale, text=text))
        assert rationale.seed == GREEDY


@torch.no_grad()
def test_neighbours_and_those_who_left_change_nothing(backbone: VisionLanguageBackbone) -> None:
    together = think(backbone, MANY, DEPTHS)
    backbone.slots = 3
    in_parts = think(backbone, MANY, DEPTHS)
    alone = [think(backbone, [s], [d]) for s, d in zip(MANY, DEPTHS, strict=True)]
    for row, single in enumerate(alone):
        texts = {str(x.rationales[0 if x is single else row] and
                     x.rationales[0 if x is single else row].text)
                 for x in (together, in_parts, single)}  # fmt: skip
        assert len(texts) == 1, texts
        for whole in (together, in_parts):
            assert (whole.vectors_BD[row] - single.vectors_BD[0]).abs().max() < 1e-5


@torch.no_grad()
def test_prompts_may_be_gone_on_from_again(backbone: VisionLanguageBackbone) -> None:
    """Each time as if it were the first: what is written changes no prompt."""
    backbone.slots = 4
    direct = backbone.read_prompts(MANY, SAMPLING)
    backbone.think(direct, [FULL] * len(MANY), SAMPLING)
    middle = direct.vectors_BD[:, 0].median()
    depths = [SHORT if vector[0] > middle else DIRECT for vector in direct.vectors_BD]
    again, alone = backbone.think(direct, depths, SAMPLING), think(backbone, MANY, depths)
    assert torch.equal(again.vectors_BD, alone.vectors_BD)
    assert again.rationales == alone.rationales
    assert 0 < sum(r is not None for r in again.rationales) < len(MANY)


@torch.no_grad()
def test_no_rationale_holds_a_turn_or_a_picture() -> None:
    """What a model babbles must not be read as part of a prompt."""
    backbone = babbling("qwen2_vl")
    special = backbone.prompts.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    with torch.no_grad():
        head = backbone.model.get_output_embeddings()
        head.weight[special] = 1.5 * head.weight[9:12].sum(0)
    drawn = [
        rationale
        for seed in range(4)
        for rationale in think(backbone, MANY, [FULL] * len(MANY), [seed] * len(MANY)).rationales
    ]
    assert not [r.text for r in drawn if r is not None and "<|" in r.text]
    early = [r for r in drawn if r is not None and r.num_tokens < SAMPLING.max_new_tokens]
    assert len(early) > len(drawn) / 2, "the token was drawn, and ended what was being said"


def test_an_empty_batch_has_no_thoughts() -> None:
    backbone = babbling("qwen3_vl")
    with torch.no_grad():
        found = think(backbone, [], [])
    assert found.vectors_BD.shape == (0, backbone.embedding_dim)
    assert found.rationales == ()
