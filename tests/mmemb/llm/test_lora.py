"""LoRA of the joint encoder: starts as the encoder, trains little, is merged when saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_modules import ContrastiveEmbedder
from mmemb.backbones import load_backbone
from mmemb.llm.lora import LoraSettings
from mmemb.records.inputs import Side
from mmemb.training.gradient_cache import GradientCache
from tests.fixtures.tiny_backbones import HELPFUL, build_clip, build_joint, cached_picture
from tests.fixtures.tiny_embedder import joint
from tests.lightning_modules.test_contrastive_embedder import ROWS, gradients, joined, rows

LORA = LoraSettings(rank=2, alpha=4.0)
SIDES = [Side("the flag of france"), Side("find it", media=(cached_picture(0),))]


def test_fresh_updates_change_nothing_and_little_is_trained(tmp_path: Path) -> None:
    backbone = build_joint(tmp_path).eval()
    before = backbone.encode(SIDES, [HELPFUL, None])
    backbone.attach_lora(LORA)
    torch.testing.assert_close(backbone.encode(SIDES, [HELPFUL, None]), before, atol=1e-6, rtol=0)
    trained = {name for name, p in backbone.named_parameters() if p.requires_grad}
    assert {name for name in trained if name.startswith("text.")}
    assert all(".lora_" in name for name in trained if name.startswith("text."))
    assert any(name.startswith("grid_projector") for name in trained), "what is new is trained"
    with pytest.raises(ValueError, match="updates already"):
        backbone.attach_lora(LORA)


def test_every_seed_starts_from_other_updates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trainings that differ in `seed_everything` are independent; equal seeds start equally."""
    starts = []
    for seed in ("0", "1", "1"):
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        module = ContrastiveEmbedder(build_joint(tmp_path / str(len(starts))), lora=LORA)
        named = module.backbone.named_parameters()
        starts.append(torch.cat([p.detach().flatten() for n, p in named if ".lora_A" in n]))
    assert not torch.equal(starts[0], starts[1])
    assert torch.equal(starts[1], starts[2])


def test_a_save_adds_the_updates_to_the_weights(tmp_path: Path) -> None:
    backbone = build_joint(tmp_path).eval()
    backbone.attach_lora(LORA)
    plain = backbone.encode(SIDES)
    for name, parameter in backbone.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    tuned = backbone.encode(SIDES)
    assert (tuned - plain).abs().max() > 1e-3
    backbone.save_pretrained(tmp_path / "saved")
    loaded = load_backbone(str(tmp_path / "saved"))
    assert not [name for name, _ in loaded.named_parameters() if "lora" in name]
    torch.testing.assert_close(loaded.encode(SIDES), tuned, atol=1e-5, rtol=0)
    torch.testing.assert_close(backbone.encode(SIDES), tuned)  # the run goes on with its own


@pytest.mark.parametrize("retained", [pytest.param(0.0, marks=pytest.mark.slow), 1.0])
def test_cached_gradients_on_two_ranks_equal_those_of_one(tmp_path: Path, retained: float) -> None:
    parts = [rows(0, 5), rows(ROWS, 0)]
    one = gradients(tmp_path / "one", joint, [joined(parts)], lora=LORA)
    cache = GradientCache(micro_batch_size=3, retained_gib=retained)
    two = gradients(tmp_path / "two", joint, parts, lora=LORA, gradient_cache=cache)
    assert one.keys() == two.keys()
    assert any(".lora_B" in name and gradient.any() for name, gradient in one.items())
    for key, expected in one.items():
        torch.testing.assert_close(two[key], expected, atol=1e-5, rtol=1e-4)


def test_who_has_no_lora_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="OpenClipBackbone takes no LoRA"):
        ContrastiveEmbedder(build_clip(tmp_path), lora=LORA)


def test_weights_of_another_embedder_are_taken_below_fresh_updates(tmp_path: Path) -> None:
    """A new training starts from a run's weights, with or without low-rank updates."""
    trained = build_joint(tmp_path)
    with torch.no_grad():
        for weight in trained.parameters():
            weight.add_(0.01)

    backbone = build_joint(tmp_path).eval()
    backbone.attach_lora(LORA)
    backbone.take_weights(trained, "a run")
    expected = trained.eval().encode(SIDES, [HELPFUL, None])
    torch.testing.assert_close(backbone.encode(SIDES, [HELPFUL, None]), expected)
    with pytest.raises(ValueError, match="a run holds a OpenClipBackbone whose weights do not fit"):
        backbone.take_weights(build_clip(tmp_path), "a run")
