"""Planned memory of a step against a real one, on the CPU; its towers are in test_towers.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.plan.memory import (
    GIB,
    ModelShape,
    Replies,
    Training,
    state_memory,
    step_memory,
)
from experiments.plan.models import language_model_shape
from experiments.plan.precisions import PRECISIONS
from experiments.plan.towers import Call, Tower, fake
from mmemb.backbones import VisionLanguageBackbone
from mmemb.llm.lora import LoraSettings
from tests.fixtures.plan_memory import CASES, LONG, measured, saved_bytes, under
from tests.fixtures.tiny_vlm import NOTE, ON_EACH, folder


@pytest.mark.parametrize("architecture", ON_EACH)
@pytest.mark.parametrize(
    ("precision", "rank"), [*CASES, pytest.param("mixed", 4, marks=pytest.mark.slow)]
)
def test_saved_bytes_of_the_writing_loss(
    architecture: str, precision: str, rank: int | None
) -> None:
    model, lora = str(folder(architecture)), LoraSettings(rank) if rank else None
    dtype = "float32" if precision == "mixed" else precision
    backbone = VisionLanguageBackbone(model, dtype=dtype)  # type: ignore[arg-type]
    if lora:
        backbone.attach_lora(lora)
    notes = [NOTE] * len(LONG)
    said = len(backbone._said(NOTE))
    call = Call(len(LONG), said + max(len(backbone.prompts.build(side)) for side in LONG))
    with under(precision):
        without, whole = (
            saved_bytes(backbone, lambda w=writes: backbone(LONG, notes, paths=True, writes=w))
            for writes in (False, True)
        )
    shape = language_model_shape(model, lora=lora)
    planned_bytes = Replies(call, said).kept(shape, PRECISIONS[precision])
    assert planned_bytes == pytest.approx(whole - without, rel=0.15)
    assert planned_bytes >= 4 * shape.vocabulary * said * len(LONG)


@pytest.mark.slow
@pytest.mark.parametrize("again", [False, True], ids=["kept", "recomputed"])
def test_a_step_of_a_model_of_the_size_of_smollm2(again: bool, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    model: Any = LlamaForCausalLM(config).eval()
    optimizer = torch.optim.AdamW(model.parameters())
    ids = torch.randint(49152, (2, 160))
    mask = torch.ones_like(ids)
    mask[0, :9] = 0  # so that there is padding
    states = []

    def run() -> None:
        output = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
        states.append(output.last_hidden_state[:, -1])

    real = measured(model, list(model.model.layers), run, again)
    states[-1].sum().backward()
    optimizer.step()
    moments = [x for state in optimizer.state.values() for x in state.values()]

    shape = language_model_shape(str(tmp_path))
    memory = step_memory(shape, Training(checkpointing=again), {"text": [Call(2, 160)]})
    assert memory.activations == pytest.approx(real, rel=0.1)
    assert memory.gradients == sum(p.grad.nbytes for p in model.parameters())
    assert memory.weights == sum(p.nbytes for p in model.parameters())
    assert memory.optimizer == pytest.approx(sum(x.nbytes for x in moments), rel=1e-4)


def test_strategies_and_micro_batches_change_the_right_parts() -> None:
    layer = torch.nn.Linear(64, 64, device="meta")
    text = Tower(
        module=layer, inputs=lambda c, _: (fake(c.tokens, 64),), blocks=(layer,), trained=True
    )
    shape = ModelShape(total=1200, trainable=1200, towers={"text": text})
    one, ddp, fsdp = (
        state_memory(shape, Training(strategy=strategy, devices=4))
        for strategy in ("single", "ddp", "fsdp2")
    )
    assert ddp.gradients == 2 * one.gradients
    assert fsdp.optimizer == one.optimizer / 4
    assert fsdp.weights == one.weights * 5 / 4, "a shard, and all of it during a step"

    calls = {"text": [Call(2, 10)]}
    graph = step_memory(shape, Training(), calls).activations
    cached = Training(micro_batches=8, retained_gib=3.5 * graph / GIB)
    assert step_memory(shape, cached, calls).activations == 4 * graph

    writer, replies = replace(shape, vocabulary=9, hidden=64), [Replies(calls["text"][0], 3)]
    kept = replies[0].kept(writer, PRECISIONS["float32"])
    longer = replace(cached, retained_gib=3.5 * (graph + kept) / GIB)
    memory = step_memory(writer, longer, calls, replies=replies)
    assert memory.loss == 4 * kept + replies[0].passing(writer), "it is a part of every graph"
