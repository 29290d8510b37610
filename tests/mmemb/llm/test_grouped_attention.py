"""Heads that share keys and values need no copies of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mmemb.backbones import VisionLanguageBackbone
from mmemb.llm.decoding.cached_rows import CachedRows
from mmemb.llm.decoding.grouped_attention import GROUPED_ATTENTION, grouped_attention
from mmemb.llm.prompts.chat_prompt import Prompt
from tests.fixtures.tiny_vlm import NOTE, ON_EACH, SIDES, folder


@pytest.mark.parametrize("name", ON_EACH)
def test_it_is_sdpa_in_vectors_and_gradients(name: str) -> None:
    found, notes = [], [NOTE, None, NOTE, None, None]
    for attention in (None, "sdpa"):
        backbone = VisionLanguageBackbone(str(folder(name)), attention=attention)
        grouped = attention is None and backbone.model._supports_attention_backend
        expected = GROUPED_ATTENTION if grouped else "sdpa"
        assert backbone.model.config._attn_implementation == expected
        with torch.no_grad():
            vectors = backbone.encode(SIDES, notes)
        backbone.encode(SIDES, notes)[:, 0].sum().backward()
        used = [p.grad.flatten() for p in backbone.model.parameters() if p.grad is not None]
        found.append((vectors, torch.cat(used)))
    (ours, our_gradient), (theirs, gradient) = found
    assert (ours - theirs).abs().max() < 1e-6
    assert (our_gradient - gradient).abs().max() < 1e-5 * gradient.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("with_mask", [True, False])
@pytest.mark.parametrize("heads", [2, 6])
def test_it_is_attention_with_repeated_keys(heads: int, with_mask: bool) -> None:
    """Two groups of keys, or as many as heads; without a mask it is causal."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(3, size, 5, 4, generator=generator, dtype=torch.float64)
        for size in (heads, 2, 2)
    )
    mask = torch.rand(3, 1, 5, 5, generator=generator) < 0.7
    mask[..., 0] = True
    layer = torch.nn.Identity()
    layer.num_key_value_groups, layer.is_causal = heads // 2, True
    mixed, _ = grouped_attention(layer, query, key, value, mask if with_mask else None)
    open_RHQL = mask if with_mask else torch.ones(5, 5, dtype=torch.bool).tril()
    scores = query @ key.repeat_interleave(heads // 2, 1).transpose(2, 3) / 2
    weights = scores.masked_fill(~open_RHQL, -torch.inf).softmax(-1)
    expected = weights @ value.repeat_interleave(heads // 2, 1)
    assert (mixed - expected.transpose(1, 2)).abs().max() < 1e-12


@torch.no_grad()
def test_no_copies_are_made_behind_a_long_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel sees two heads of keys, not four; many new tokens are left to `sdpa`."""
    heads: list[tuple[int, int]] = []
    kernel = torch.nn.functional.scaled_dot_product_attention

    def noted(query: torch.Tensor, key: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        heads.append((query.shape[1], key.shape[1]))
        return kernel(query, key, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
    backbone = VisionLanguageBackbone(str(folder("qwen3_vl")))
    prompt = Prompt(tuple(range(10, 200)))
    rows = CachedRows(backbone.model, [prompt, Prompt(prompt.ids[5:])])
    assert set(heads) == {(4, 4)}
    heads.clear()
    rows.feed(torch.tensor([[3, 4], [5, 6]]))
    assert set(heads) == {(2, 2)}


def test_what_was_asked_for_is_used() -> None:
    backbone = VisionLanguageBackbone(str(folder("qwen3_vl")), attention="eager")
    assert backbone.model.config._attn_implementation == "eager"
