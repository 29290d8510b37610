"""Towers on fake tensors against the same towers with weights, on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from experiments.plan.models import joint_shape, language_model_shape, open_clip_shape
from experiments.plan.towers import Call, Tower, fake
from mmemb.backbones import Backbone, VisionLanguageBackbone
from mmemb.llm.lora import LoraSettings
from mmemb.records.inputs import Side
from tests.fixtures.plan_memory import CASES, LONG, measured, saved_bytes, under
from tests.fixtures.tiny_backbones import TINY, build_clip, build_joint, cached_picture
from tests.fixtures.tiny_vlm import ON_EACH, folder


@pytest.mark.parametrize("architecture", ON_EACH)
@pytest.mark.parametrize("again", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize(("precision", "rank"), CASES)
def test_kept_bytes_of_vision_language_models(
    architecture: str, again: bool, precision: str, rank: int | None
) -> None:
    model, lora = str(folder(architecture)), LoraSettings(rank) if rank else None
    dtype = "float32" if precision == "mixed" else precision
    backbone = VisionLanguageBackbone(model, dtype=dtype)  # type: ignore[arg-type]
    if lora:
        backbone.attach_lora(lora)
    length = max(len(backbone.prompts.build(side)) for side in LONG)
    with under(precision):
        real = measured(backbone, backbone.blocks(), lambda: backbone(LONG), again)

    text = language_model_shape(model, lora=lora).towers["text"]
    kept = text.kept((Call(len(LONG), length),), precision, checkpointing=again)
    assert kept == pytest.approx(real, rel=0.03), kept / real


@pytest.mark.parametrize(
    "again", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["kept", "recomputed"]
)
def test_kept_bytes_of_the_other_backbones(again: bool, tmp_path: Path) -> None:
    words = " ".join(["paris is the capital of"] * 8)
    for precision in ("float32", "mixed"):
        joint: Backbone = build_joint(tmp_path / precision)
        sides = [Side(words, media=(cached_picture(1),)), Side(words)] * 4
        with under(precision):
            real = measured(joint, joint.blocks(), lambda b=joint, s=sides: b(s), again)
        text = joint_shape(joint.config()).towers["text"]
        kept = text.kept((Call(len(sides), 45),), precision, checkpointing=again)
        assert kept == pytest.approx(real, rel=0.15), (precision, kept / real)

    clip = build_clip(tmp_path)
    sides = [Side(words) for _ in range(8)]
    blocks = [b for name, b in clip.named_modules() if b in clip.blocks() and "visual" not in name]
    real = measured(clip, blocks, lambda: clip(sides), again)
    text = open_clip_shape(TINY).towers["text"]
    kept = text.kept((Call(8, clip.tokenizer.context_length),), "float32", checkpointing=again)
    assert kept == pytest.approx(real, rel=0.15), kept / real


@pytest.mark.parametrize("architecture", ON_EACH)
def test_kept_bytes_of_a_trained_vision_tower(architecture: str) -> None:
    model = str(folder(architecture))
    visual: Any = VisionLanguageBackbone(model, freeze_vision=False).model.base_model.visual
    tower = language_model_shape(model, freeze_vision=False).towers["vision"]
    pixels, grid = tower.inputs(Call(2, 32), True)
    real = saved_bytes(visual, lambda: visual(torch.randn(*pixels.shape), grid))
    assert tower.kept((Call(2, 32),), "float32") == pytest.approx(real, rel=0.05)


@pytest.mark.slow
def test_passes_without_a_graph(tmp_path: Path) -> None:
    """A pass counts as many FLOPs as a real one, and needs less than the graph would keep."""
    model, call = str(folder("qwen3_vl")), Call(3, 40)
    decoder = VisionLanguageBackbone(model).model.get_decoder()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        decoder(torch.zeros(call.rows, call.length, dtype=torch.long))

    text = language_model_shape(model).towers["text"]
    attention = text.flops(call) - counter.get_total_flops()
    config = decoder.config
    queries = config.num_attention_heads * config.head_dim * config.num_hidden_layers
    # torch's own counter has no formula for the attention kernel of a CPU.
    assert attention in (0, 4 * call.length * call.tokens * queries)
    assert 0 < text.passing(call, "float32") < text.kept((call,), "float32")


def test_calls_share_copies_of_weights() -> None:
    layers = torch.nn.Sequential(*(torch.nn.Linear(64, 64, device="meta") for _ in range(2)))
    tower = Tower(
        module=layers, inputs=lambda c, _: (fake(c.rows, 64),), blocks=tuple(layers), trained=True
    )
    inputs, copy = 2 * 2 * (3 * 64), 2 * 64 * 64  # no gradient passes through the first weights
    assert tower.kept((Call(3, 1),), "mixed") == inputs + copy
    assert tower.kept((Call(3, 1),) * 4, "mixed") == 4 * inputs + copy
    assert not tower.kept((), "mixed")


def test_code_that_needs_numbers_is_named() -> None:
    class Greedy(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> list[float]:
            return x.tolist()  # type: ignore[no-any-return]

    tower = Tower(module=Greedy(), inputs=lambda c, _: (fake(c.rows),), blocks=(), trained=True)
    with pytest.raises(ValueError, match="Greedy cannot be planned"):
        tower.flops(Call(2, 1))
