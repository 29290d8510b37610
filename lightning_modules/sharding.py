"""A backbone whose weights, gradients and optimiser states are spread over the ranks (FSDP2).

The whole backbone is one group: its weights are gathered once per step and its gradients scattered
once. So ranks may call it unequally often, which ours do: rows without a rationale, long and short
texts apart, micro-batches by tokens. Groups per layer would gather once per call and wait for ever.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from mmemb.backbones import Backbone


def shard(backbone: Backbone, mesh: DeviceMesh, precision: str) -> Backbone:
    """Shards in place; to be called alike on all ranks.

    Args:
        backbone: whole, the same on every rank.
        mesh: Lightning's, all of its ranks along `data_parallel`.
        precision: the trainer's; with `bf16-mixed` the weights travel as bf16, and gradients are
            summed in fp32.

    Returns:
        Its twin without weights, which `save_whole` fills and writes.

    Raises:
        ValueError: the mesh asks for tensor parallelism.
    """
    if mesh["tensor_parallel"].size() > 1:
        raise ValueError(
            f"tensor_parallel_size is {mesh['tensor_parallel'].size()}: backbones are split over "
            "data only. Set data_parallel_size to the number of ranks and tensor_parallel_size to "
            "1 in trainer.strategy.init_args."
        )

    # The twin takes the copy's structure and no memory: its weights lie on the meta device.
    hollow = {id(p): nn.Parameter(p.to("meta"), p.requires_grad) for p in backbone.parameters()}
    twin = copy.deepcopy(backbone, hollow)

    half = precision == "bf16-mixed"
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if half else MixedPrecisionPolicy()
    scalars = {p for p in backbone.parameters() if p.ndim == 0}  # those of open_clip are not used

    # Not resharded after a forward pass, so that unequally many calls need no further gather.
    fully_shard(
        backbone,
        mesh=mesh["data_parallel"],
        reshard_after_forward=False,
        mp_policy=policy,
        ignored_params=scalars,
    )

    return twin


def gather(backbone: nn.Module) -> None:
    """Gathers all weights on every rank until the next backward pass, so that ranks may embed
    unequally many batches; nothing to do for a backbone that is not sharded."""
    if isinstance(backbone, FSDPModule):
        backbone.unshard()


def save_whole(backbone: Backbone, twin: Backbone | None, folder: Path, writes: bool) -> None:
    """Writes a backbone that is perhaps sharded; to be called on all ranks.

    Args:
        backbone: with the weights.
        twin: result of `shard`; None = the backbone is whole.
        folder: folder that `Backbone.save_pretrained` writes.
        writes: true on the rank that writes.
    """
    if twin is not None:
        # A collective: ranks that do not write take part, too.
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_model_state_dict(backbone, options=options)
        if not writes:
            return
        twin.load_state_dict(state, assign=True)

    if writes:
        (twin or backbone).save_pretrained(folder)
