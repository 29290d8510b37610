"""The shapes of a transformer's layers, read off its modules by the names that libraries give them.

The modules may be on the meta device: no weight is looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from experiments.plan.layers import Block, Tower

_CHUNK = 64
"""Tokens that a linear attention reads together."""


def tower(model: nn.Module, heads: int, *, trained: bool, outside: int = 1) -> Tower:
    """The blocks of a model of transformers.

    Args:
        model: a decoder, an encoder or a vision tower.
        heads: of its attention.
        trained: whether gradients pass through it.
        outside: see `Tower`.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    blocks = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    return tower_of(blocks, heads, trained=trained, outside=outside)


def tower_of(blocks: list[nn.Module], heads: int, *, trained: bool, outside: int) -> Tower:
    """See `tower`, for blocks that were found otherwise."""
    shapes = tuple(block_shape(block, heads) for block in blocks)
    weights = sum(p.numel() for block in blocks for p in block.parameters() if p.ndim > 1)
    return Tower(blocks=shapes, weights=weights, trained=trained, outside=outside)


def block_shape(block: nn.Module, heads: int) -> Block:
    """The shape of one layer, by the names of its linear layers.

    Raises:
        ValueError: it is of no known kind.
    """
    linear = {n.split(".")[-1]: m for n, m in block.named_modules() if isinstance(m, nn.Linear)}
    dense = {n: m for n, m in block.named_modules() if isinstance(m, nn.Linear)}
    shared = {"heads": heads, "rms": _rms(block), "gated": "gate_proj" in linear}
    up = next((linear[n] for n in ("up_proj", "fc1", "linear_fc1", "c_fc") if n in linear), None)
    if "in_proj_qkv" in linear and up is not None:  # a gated delta net, as Qwen3.5 has it
        return _delta_block(block, linear, up, shared)
    if "q_proj" in linear and "o_proj" in linear and up is not None:
        query, key = linear["o_proj"].in_features, linear["k_proj"].out_features
        has_norms = any(name.endswith("q_norm") for name, _ in block.named_modules())
        gate = 3 * query if linear["q_proj"].out_features > query else 0
        return Block(
            hidden=up.in_features, inner=up.out_features, query=query, key=key,
            head_norms=has_norms, extra=gate, masked=True, **shared,
        )  # fmt: skip
    if "query" in linear and "intermediate.dense" in dense:  # BERT
        up, query = dense["intermediate.dense"], linear["query"].out_features
        return Block(
            hidden=up.in_features,
            inner=up.out_features,
            query=query,
            key=query,
            masked=True,
            **shared,
        )
    if up is not None:
        width = up.in_features
        # x * sigmoid(1.7 x) in two steps keeps the sigmoid, too; other activations are one kernel.
        quick = any("QuickGELU" in type(m).__name__ for m in block.modules())
        rotates = "qkv" in linear and type(block).__module__.startswith("transformers.")
        return Block(
            hidden=width, inner=up.out_features, query=width, key=width, qkv_readers=1,
            packed_rotary=rotates,
            extra=quick * up.out_features, **shared,
        )  # fmt: skip
    raise ValueError(
        f"{type(block).__name__} is a layer whose memory the planner does not know; it knows those "
        "of Llama, Qwen, BERT, open_clip and timm. Its linear layers: " + ", ".join(linear)
    )


def _delta_block(block: Any, linear: Mapping[str, Any], up: nn.Linear, shared: Any) -> Block:
    """Of the reference implementation: per value head about five matrices of a chunk's tokens by
    its tokens, and fourteen tensors of keys and values; the fused kernels keep far less."""
    mixer = block.linear_attn
    values, width = mixer.num_v_heads, max(mixer.head_k_dim, mixer.head_v_dim)
    mixed = linear["in_proj_qkv"].out_features
    extra = values * (5 * _CHUNK + 14 * width) + 3 * mixed + 3 * linear["in_proj_z"].out_features
    return Block(
        hidden=up.in_features, inner=up.out_features, query=0, key=0, extra=extra, attends=False,
        qkv_readers=4, chunk=_CHUNK, **shared,
    )  # fmt: skip


def _rms(model: nn.Module) -> bool:
    return any(type(m).__name__.endswith("RMSNorm") for m in model.modules())
