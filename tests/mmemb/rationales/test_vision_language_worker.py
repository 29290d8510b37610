"""VisionLanguageWorker: draws about pictures, probes, and what is fitted to be written."""

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
from mmemb.rationales import NO_DRAW, VisionLanguageWorker, fold_candidates, load_worker
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


def worker(model: str, **settings: object) -> VisionLanguageWorker:
    given = {"max_new_tokens": 20, "top_k": 3, "temperature": 1.0, "top_p": 1.0}
    return VisionLanguageWorker(model, **{**given, **settings})  # type: ignore[arg-type]


def as_bytes(written: list) -> bytes:
    return json.dumps([[to_json(r) for r in pool] for pool in written]).encode()


def test_draws_depend_on_side_and_seed_alone(model: str) -> None:
    writer = worker(model)
    assert writer.reads == {"text", "image", "video"}
    first = writer.write(SIDES, SEEDS)
    assert [[r.seed for r in pool] for pool in first] == [
        [seed for seed in row if seed != NO_DRAW] for row in SEEDS.tolist()
    ]
    texts = [r.text for pool in first for r in pool]
    assert len(set(texts)) > len(texts) / 2
    assert as_bytes(first) == as_bytes(load_worker(writer.spec()).write(SIDES, SEEDS))
    alone = [
        worker(model, batch_size=2).write([s], k[None])[0]
        for s, k in zip(SIDES, SEEDS, strict=True)
    ]
    assert [[r.text for r in pool] for pool in alone] == [[r.text for r in p] for p in first]


def test_a_greedy_draw_is_what_the_backbone_thinks(model: str) -> None:
    from mmemb.backbones import VisionLanguageBackbone

    writer = worker(model)
    (pool,) = writer.write(SIDES[1:2], torch.tensor([[GREEDY]]))
    backbone = VisionLanguageBackbone(model, writer.style)
    (thought,) = backbone.generate(SIDES[1:2], FULL, Sampling(20, 1.0, 1.0, 3))
    assert thought is not None
    assert pool[0].text == thought.text


def test_broken_drafts_are_dropped_and_counted(model: str) -> None:
    written = worker(model).write(SIDES, SEEDS)
    pool = [rationale for rationales in written for rationale in rationales]
    kept, dropped = fold_candidates(pool, max_tokens=96)
    assert dropped
    assert all(rationale.answer for rationale in kept)


def test_a_short_draft_begins_with_its_answer(model: str) -> None:
    (pool,) = worker(model, depth=SHORT).write(SIDES[:1], torch.tensor([[GREEDY]]))
    assert (pool[0].text[:8], pool[0].depth) == ("<answer>", SHORT)
    with pytest.raises(ValueError, match="depth 'deep'"):
        worker(model, depth="deep")


@torch.no_grad()
def test_a_probe_is_the_state_of_a_block_at_the_prompts_end(model: str) -> None:
    writer = worker(model, probe_layer=1)
    fresh = writer.probe(SIDES)
    writer.write(SIDES, SEEDS)
    assert torch.equal(fresh, writer.probe(SIDES))
    seen: list[torch.Tensor] = []
    backbone = writer._backbone
    block = backbone.model.get_decoder().layers[1]
    hook = block.register_forward_hook(lambda m, a, out: seen.append(out))
    prompt = backbone.prompts.build(SIDES[2])
    backbone.model.base_model(**collate(backbone.model, [prompt], "left").inputs)
    hook.remove()
    state = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    assert (fresh[2] - state[0, -1]).abs().max() < 1e-4


@torch.no_grad()
def test_probes_are_kept_within_a_call_however_many_there_are(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = worker(model).probe(SIDES)
    monkeypatch.setattr("mmemb.llm.decoding.drafter.MOST_STATES", 1)
    monkeypatch.setattr("mmemb.llm.decoding.cached_rows.READ_TOGETHER", 2)
    writer = worker(model, batch_size=2)
    for sides in (SIDES, SIDES[::-1], SIDES[1:]):
        found = writer.probe(sides)
        rows = [SIDES.index(side) for side in sides]
        assert (found - expected[rows]).abs().max() < 1e-4
    writer.write(SIDES, SEEDS)
    assert (writer.probe(SIDES) - expected).abs().max() < 1e-4


def test_a_new_template_is_another_worker(model: str, tmp_path: Path) -> None:
    """What was written behind the old one is not reused."""
    shutil.copytree(model, tmp_path / "model")
    before = worker(str(tmp_path / "model")).draw_identity()
    assert before == worker(model).draw_identity()
    template = tmp_path / "model/chat_template.jinja"
    template.write_text(template.read_text() + " ")
    assert before != worker(str(tmp_path / "model")).draw_identity()


def test_who_it_is_depends_on_what_it_would_write(model: str) -> None:
    marks = {
        worker(model).draw_identity(),
        worker(model, max_new_tokens=21).draw_identity(),
        worker(model, style=PromptStyle(system="Think.")).draw_identity(),
    }
    assert len(marks) == 3
    assert worker(model, batch_size=3).draw_identity() == worker(model).draw_identity()


def test_what_is_fitted_becomes_likelier_and_is_loaded_again(model: str, tmp_path: Path) -> None:
    tuner = worker(model).tuner(LoraSettings(rank=4, alpha=16.0), seed=0)
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
    tuned = worker(model, adapter=str(tmp_path / "generator"))
    assert tuned.fitted_facts == {"a/b"}
    with torch.no_grad():
        found = tuned._backbone.encode_paths(sides, notes)
        term = tuner.loss(sides, notes)
    assert float(found.nll_B.sum()) == pytest.approx(float(term.sum), rel=1e-4)
    with pytest.raises(ValueError, match="has the adapter"):
        tuned.tuner(LoraSettings(), 0)
