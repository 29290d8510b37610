"""AdaptiveEmbedder over a backbone that writes by itself; and the decision as a first token."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from mmemb.backbones import VisionLanguageBackbone
from mmemb.backbones.generative import DirectVectors
from mmemb.gate.adaptive_embedder import AdaptiveEmbedder
from mmemb.gate.budget import BudgetCalibration
from mmemb.gate.first_token import FirstTokenHead
from mmemb.gate.heads import MlpDepthHead, load_head, save_head
from mmemb.gate.policy_loss import policy_loss
from mmemb.gate.reasoners import OnePassReasoner, Written
from mmemb.llm.decoding.sampling import Sampling
from mmemb.losses.terms import combine
from mmemb.rationales import SelfWriter, TableWriter, load_writer
from mmemb.records.inputs import Side
from tests.fixtures.tiny_embedder import joint
from tests.fixtures.tiny_vlm import SIDES, babbling

MANY = [*SIDES, *(Side(f"{'so ' * n}number {n}") for n in range(7))]


@pytest.fixture(scope="module")
def backbone() -> VisionLanguageBackbone:
    return babbling("qwen3_vl", slots=4)


def embedder(backbone: VisionLanguageBackbone) -> AdaptiveEmbedder:
    """Its gate wants to reason about one half."""
    head = MlpDepthHead(backbone.embedding_dim, hidden_dim=0).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        direct_BD = backbone.encode(MANY)
        head.standardise(direct_BD)
        torch.nn.init.normal_(head.output.weight)
        logits = head(direct_BD)
    costs = torch.tensor([[0.0, 9.0]] * len(MANY))
    calibration = BudgetCalibration.calibrate(logits, costs, [side.digest for side in MANY])
    return AdaptiveEmbedder(backbone, head, calibration, {"full": SelfWriter(24)})


def test_one_pass_takes_the_gates_decisions(backbone: VisionLanguageBackbone) -> None:
    adaptive = embedder(backbone)
    found = adaptive.encode(MANY, budget=0.5)
    with torch.no_grad():
        direct = backbone.encode(MANY)
        expected = adaptive.decide(DirectVectors(tuple(MANY), direct), 0.5)
    assert torch.equal(found.depths_B, expected)
    assert 0 < int(found.depths_B.sum()) < len(MANY)
    assert torch.equal(found.tokens_B > 0, found.depths_B > 0)
    stayed = found.depths_B == 0
    assert (found.vectors_BD - direct)[stayed].abs().max() < 1e-5
    assert (found.vectors_BD - direct)[~stayed].abs().max() > 1e-2


def test_a_budget_of_zero_is_the_base_model_bit_by_bit(backbone: VisionLanguageBackbone) -> None:
    adaptive = embedder(backbone)
    nobody = adaptive.encode(MANY, budget=0.0)
    direct = adaptive.encode(MANY, depth="direct")
    assert torch.equal(nobody.vectors_BD, direct.vectors_BD)
    assert not nobody.depths_B.any()


def test_each_step_of_one_pass_stands_alone(backbone: VisionLanguageBackbone) -> None:
    """Prompts are read once for several budgets; and what was written earlier is read again."""
    adaptive = embedder(backbone)
    direct = adaptive.embed(MANY)
    for budget in (0.3, 1.0):
        whole = adaptive.encode(MANY, budget)
        written = adaptive.write(direct, adaptive.decide(direct, budget))
        found = adaptive.read(direct, written)
        assert torch.equal(found.vectors_BD, whole.vectors_BD)
        assert found.rationales == whole.rationales

    # Without the caches: vectors of another origin, and rationales that lie there.
    bare = DirectVectors(direct.sides, direct.vectors_BD)
    assert adaptive.write(bare, written.depths_B).rationales == written.rationales
    again = adaptive.read(bare, Written(written.depths_B, written.rationales))
    assert (again.vectors_BD - found.vectors_BD).abs().max() < 1e-5
    assert torch.equal(again.tokens_B, found.tokens_B)


def test_one_pass_reads_no_prompt_twice(
    backbone: VisionLanguageBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    adaptive = embedder(backbone)
    monkeypatch.setattr(backbone, "_encode", None)
    assert adaptive.encode(MANY, budget=1.0).depths_B.any()


@pytest.mark.slow
def test_each_depth_has_its_own_length(backbone: VisionLanguageBackbone) -> None:
    """As if its writer were the only one."""
    lengths = {"short": 6, "full": 40}
    writers = {depth: SelfWriter(most) for depth, most in lengths.items()}
    head = MlpDepthHead(backbone.embedding_dim, 3)
    adaptive = AdaptiveEmbedder(backbone, head, BudgetCalibration(), writers)
    for depth, most in lengths.items():
        found = adaptive.encode(MANY, depth=depth)
        alone = backbone.generate(MANY, depth, Sampling(most, 1.0, 1.0, 1))
        assert found.tokens_B.tolist() == [r.num_tokens for r in alone if r is not None]
    assert adaptive.encode([]).tokens_B.dtype == torch.long


def test_it_is_saved_and_loaded_with_gate_and_writer(
    backbone: VisionLanguageBackbone, tmp_path: Path
) -> None:
    adaptive = embedder(backbone)
    adaptive.save_pretrained(tmp_path)
    again = AdaptiveEmbedder.from_pretrained(tmp_path)
    before, after = adaptive.encode(MANY, budget=0.5), again.encode(MANY, budget=0.5)
    assert torch.equal(before.depths_B, after.depths_B)
    assert (before.vectors_BD - after.vectors_BD).abs().max() < 1e-5
    assert torch.equal(before.tokens_B, after.tokens_B)
    assert isinstance(again.reasoner, OnePassReasoner)


def test_who_cannot_write_by_itself_is_refused(
    backbone: VisionLanguageBackbone, tmp_path: Path
) -> None:
    head, calibration = MlpDepthHead(32), embedder(backbone).calibration
    with pytest.raises(ValueError, match="writes by itself"):
        AdaptiveEmbedder(joint(tmp_path), head, calibration, {"full": SelfWriter()})
    with pytest.raises(ValueError, match="only inside an AdaptiveEmbedder: choose a writer"):
        load_writer(SelfWriter().spec())
    (tmp_path / "facts.json").write_text('{"countries": {}, "questions": {}}')
    writers = {"short": TableWriter(str(tmp_path / "facts.json")), "full": SelfWriter()}
    with pytest.raises(ValueError, match="at every depth or at none, got writers"):
        AdaptiveEmbedder(backbone, MlpDepthHead(32, 3), calibration, writers)


def test_the_first_token_decides_as_the_model_would(
    backbone: VisionLanguageBackbone, tmp_path: Path
) -> None:
    """At first the head's difference of logits is the model's own, up to the state's length."""
    backbone.save_pretrained(tmp_path / "backbone")
    head = FirstTokenHead(
        32, backbone=str(tmp_path / "backbone"), tokens=["<|im_end|>", "</think>"]
    )
    from mmemb.llm.decoding.cached_rows import CachedRows

    tokenizer = backbone.prompts.tokenizer
    ids = [tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "</think>")]
    with torch.no_grad():
        rows = CachedRows(backbone.model, [backbone.prompts.build(s) for s in MANY])
        own = rows.logits_RV[:, ids]
        found = head(torch.nn.functional.normalize(rows.state_RH, dim=-1))
        length = rows.state_RH.norm(dim=-1, keepdim=True) / 32**0.5
    torch.testing.assert_close(found * length, own, atol=1e-4, rtol=1e-4)
    save_head(head, tmp_path / "gate")
    again = load_head(tmp_path / "gate")
    assert torch.equal(again.output.weight, head.output.weight)


def test_the_first_token_learns_by_grpo(backbone: VisionLanguageBackbone) -> None:
    head = FirstTokenHead(32)
    with torch.no_grad():
        state = backbone.encode(MANY)
    pays = state[:, 0] > state[:, 0].median()
    reward = torch.stack([torch.zeros(len(MANY)), torch.where(pays, 1.0, -1.0)], dim=1)
    optimizer = partial(torch.optim.Adam, lr=0.05)(head.parameters())
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        logits = head(state)
        noise = torch.rand(len(MANY), 4, generator=generator)
        loss = combine(
            policy_loss("grpo", logits, reward, old_logit_BA=logits.detach(), uniform_BJ=noise)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert ((head(state).argmax(1) == 1) == pays).float().mean() > 0.9


def test_tokens_that_do_not_fit_are_refused(
    backbone: VisionLanguageBackbone, tmp_path: Path
) -> None:
    backbone.save_pretrained(tmp_path / "backbone")
    where = str(tmp_path / "backbone")
    with pytest.raises(ValueError, match="for 3 depths"):
        FirstTokenHead(32, 3)
    with pytest.raises(ValueError, match="do not differ in their first token"):
        FirstTokenHead(32, 2, where, ["<think>", "<think>"])
    with pytest.raises(ValueError, match="The gate's state has width 35"):
        FirstTokenHead(35, 2, where)
