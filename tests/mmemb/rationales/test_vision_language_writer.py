"""VisionLanguageWriter: draws about pictures, prompt states, and what is fitted to be written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from mmemb.llm import PromptStyle
from mmemb.llm.decoding.cached_rows import collate
from mmemb.llm.decoding.sampling import Sampling
from mmemb.llm.lora import LoraSettings
from mmemb.rationales import NO_DRAW, VisionLanguageWriter, load_writer, merge_drafts
from mmemb.records.rationales import FULL, GREEDY, SHORT
from mmemb.records.schema import to_json
from tests.fixtures.tiny_vlm import NOTE, SIDES, babbling

SEEDS = torch.tensor([[GREEDY, 5, 6], [7, 8, NO_DRAW], [GREEDY, NO_DRAW, 9], [1, 2, 3], [4, 5, 6]])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that writes drafts of unequal lengths."""
    folder = tmp_path_factory.mktemp("babbling")
    babbling("qwen3_vl").save_pretrained(folder)
    return str(folder / "model")


def make_writer(model: str, **settings: object) -> VisionLanguageWriter:
    given = {"max_new_tokens": 20, "top_k": 3, "temperature": 1.0, "top_p": 1.0}
    return VisionLanguageWriter(model, **{**given, **settings})  # type: ignore[arg-type]


def as_bytes(written: list) -> bytes:
    return json.dumps([[to_json(r) for r in pool] for pool in written]).encode()


def test_draws_depend_on_side_and_seed_alone(model: str) -> None:
    writer = make_writer(model)
    assert writer.reads == {"text", "image", "video"}
    first = writer.write(SIDES, SEEDS)
    assert [[r.seed for r in pool] for pool in first] == [
        [seed for seed in row if seed != NO_DRAW] for row in SEEDS.tolist()
    ]
    texts = [r.text for pool in first for r in pool]
    assert len(set(texts)) > len(texts) / 2
    assert as_bytes(first) == as_bytes(load_writer(writer.spec()).write(SIDES, SEEDS))
    alone = [
        make_writer(model, batch_size=2).write([s], k[None])[0]
        for s, k in zip(SIDES, SEEDS, strict=True)
    ]
    assert [[r.text for r in pool] for pool in alone] == [[r.text for r in p] for p in first]


def test_a_greedy_draw_is_what_the_backbone_thinks(model: str) -> None:
    from mmemb.backbones import VisionLanguageBackbone

    writer = make_writer(model)
    (pool,) = writer.write(SIDES[1:2], torch.tensor([[GREEDY]]))
    backbone = VisionLanguageBackbone(model, writer.style)
    (thought,) = backbone.generate(SIDES[1:2], FULL, Sampling(20, 1.0, 1.0, 3))
    assert thought is not None
    assert pool[0].text == thought.text


def test_broken_drafts_are_dropped_and_counted(model: str) -> None:
    written = make_writer(model).write(SIDES, SEEDS)
    pool = [rationale for rationales in written for rationale in rationales]
    kept, dropped = merge_drafts(pool, max_tokens=96)
    assert dropped
    assert all(rationale.answer for rationale in kept)


def test_a_short_draft_begins_with_its_answer(model: str) -> None:
    (pool,) = make_writer(model, depth=SHORT).write(SIDES[:1], torch.tensor([[GREEDY]]))
    assert (pool[0].text[:8], pool[0].depth) == ("<answer>", SHORT)
    with pytest.raises(ValueError, match="depth 'deep'"):
        make_writer(model, depth="deep")


@torch.no_grad()
def test_a_prompt_state_is_the_state_of_a_block_at_the_prompts_end(model: str) -> None:
    writer = make_writer(model, prompt_state_layer=1)
    fresh = writer.prompt_states(SIDES)
    writer.write(SIDES, SEEDS)
    assert torch.equal(fresh, writer.prompt_states(SIDES))
    seen: list[torch.Tensor] = []
    backbone = writer._backbone
    block = backbone.model.get_decoder().layers[1]
    hook = block.register_forward_hook(lambda m, a, out: seen.append(out))
    prompt = backbone.prompts.build(SIDES[2])
    backbone.model.base_model(**collate(backbone.model, [prompt], "left").inputs)
    hook.remove()
    state = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    assert (fresh[2] - state[0, -1]).abs().max() < 1e-4


@pytest.mark.slow
@torch.no_grad()
def test_prompt_states_are_kept_within_a_call_however_many_there_are(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = make_writer(model).prompt_states(SIDES)
    monkeypatch.setattr("mmemb.llm.decoding.drafter.MOST_STATES", 1)
    monkeypatch.setattr("mmemb.llm.decoding.cached_rows.READ_TOGETHER", 2)
    writer = make_writer(model, batch_size=2)
    for sides in (SIDES, SIDES[::-1], SIDES[1:]):
        found = writer.prompt_states(sides)
        rows = [SIDES.index(side) for side in sides]
        assert (found - expected[rows]).abs().max() < 1e-4
    writer.write(SIDES, SEEDS)
    assert (writer.prompt_states(SIDES) - expected).abs().max() < 1e-4


def test_a_new_template_is_another_writer(model: str, tmp_path: Path) -> None:
    """What was written behind the old one is not reused."""
    shutil.copytree(model, tmp_path / "model")
    before = make_writer(str(tmp_path / "model")).draw_identity()
    assert before == make_writer(model).draw_identity()
    template = tmp_path / "model/chat_template.jinja"
    template.write_text(template.read_text() + " ")
    assert before != make_writer(str(tmp_path / "model")).draw_identity()


def test_who_it_is_depends_on_what_it_would_write(model: str) -> None:
    marks = {
        make_writer(model).draw_identity(),
        make_writer(model, max_new_tokens=21).draw_identity(),
        make_writer(model, style=PromptStyle(system="Think.")).draw_identity(),
    }
    assert len(marks) == 3
    assert make_writer(model, batch_size=3).draw_identity() == make_writer(model).draw_identity()


def test_what_is_fitted_becomes_likelier_and_is_loaded_again(model: str, tmp_path: Path) -> None:
    tuner = make_writer(model).tuner(LoraSettings(rank=4, alpha=16.0), seed=0)
    sides, notes = SIDES[:3], [NOTE] * 3
    optimizer = torch.optim.Adam(tuner.parameters.values(), lr=0.02)
    losses = []
    for _ in range(8):
        term = tuner.loss(sides, notes)
        loss = term.sum / term.count
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    tuner.save(tmp_path / "generator")
    (tmp_path / "fitted.json").write_text('{"facts": ["a/b"]}')
    tuned = make_writer(model, adapter=str(tmp_path / "generator"))
    assert tuned.trained_facts == {"a/b"}
    with torch.no_grad():
        found = tuned._backbone.encode_paths(sides, notes)
        term = tuner.loss(sides, notes)
    assert float(found.nll_B.sum()) == pytest.approx(float(term.sum), rel=1e-4)
    with pytest.raises(ValueError, match="has the adapter"):
        tuned.tuner(LoraSettings(), 0)
