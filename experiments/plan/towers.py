"""The towers of a model, run on fake tensors: the memory of a pass, and its FLOPs.

A fake tensor has a shape, a type and a device, but no numbers. So a tower of any library runs here
as it is, in seconds and without weights, and no formula has to follow its layers. torch keeps
`_subclasses.fake_tensor` private, so it may change: tests/experiments/plan/test_towers.py compares
every result with a real pass. Units: bytes, unless a name has another one.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, final

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from torch.utils.weak import WeakIdKeyDictionary

from experiments.plan.precisions import PRECISIONS, Precision
from mmemb.records.text import quote
from mmemb.training.blocks import checkpoint_blocks

# The numbers of positions and grids steer loops of a model, so such tensors stay real.
_FAKE = FakeTensorMode(allow_non_fake_inputs=True)


# torch has formulas for the attention kernels of a GPU; this is the one of a CPU.
_CPU_FLOPS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: (
        sdpa_flop_count(q, k, v)
    )
}


@final
@dataclass(frozen=True, slots=True)
class Call:
    """Rows that are read together, padded to one length in tokens."""

    rows: int
    length: int

    @property
    def tokens(self) -> int:
        """Tokens of all rows, padding included."""
        return self.rows * self.length


Inputs = Callable[[Call, bool], tuple[Any, ...]]
"""A call, and whether its rows are padded -> what the tower's module is called with."""


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Tower:
    """A part of a model that reads tokens.

    Attributes:
        module: on the meta device; `requires_grad` of its parameters says what is trained.
        inputs: makes the arguments of the module.
        blocks: its repeated layers, which checkpointing computes twice.
        trained: whether gradients pass through it.
    """

    module: nn.Module
    inputs: Inputs
    blocks: tuple[nn.Module, ...]
    trained: bool

    def kept(
        self,
        calls: tuple[Call, ...],
        precision: str,
        *,
        checkpointing: bool = False,
        padded: bool = True,
    ) -> int:
        """Returns the bytes that autograd keeps of some calls until the backward pass.

        Args:
            calls: what is read; their graphs are in memory together.
            precision: key of `PRECISIONS`; autocast's copies of weights are counted.
            checkpointing: blocks keep their inputs; one is whole while it is computed again.
            padded: whether rows need a mask.
        """
        if not self.trained or not calls:
            return 0

        kept, _ = _kept(self, calls, precision, padded, checkpointing)
        if not checkpointing:
            return kept

        # Blocks keep their inputs; then one of them at a time has its whole graph again.
        return kept + max(_kept(self, (c,), precision, padded, False)[1] for c in calls)

    def passing(self, call: Call, precision: str) -> int:
        """Returns the most bytes of a call without a backward pass, beside the weights."""
        return _passing(self, call, precision)

    def flops(self, call: Call) -> int:
        """Returns the FLOPs of a forward pass; of attention all scores, though half are masked."""
        return _flops(self, call)


@cache
def _kept(
    tower: Tower, calls: tuple[Call, ...], precision: str, padded: bool, checkpointing: bool
) -> tuple[int, int]:
    """Bytes that autograd keeps, and those among them of the block that keeps most."""
    types = PRECISIONS[precision]
    weights = _fake_weights(tower.module, types.dtype)
    running: list[nn.Module] = []
    of_block = dict.fromkeys(tower.blocks, 0)

    # Weights are there anyway; the copies that autocast makes of them are not among these.
    weight_storages = {
        id(storage): storage for storage in (x.untyped_storage() for x in weights.values())
    }
    others: dict[int, Any] = {}

    def note(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if id(storage) not in weight_storages and id(storage) not in others:
            others[id(storage)] = storage  # alive, so its id is not given away again
            for block in running:
                of_block[block] += storage.nbytes()
        return x

    with (
        _noted(tower.blocks, running),
        _recomputed(tower.blocks if checkpointing else ()),
        saved_tensors_hooks(note, lambda x: x),
        _autocast(types),
        _Answers(),
    ):
        for call in calls:
            _run(tower, weights, call, padded)
    return sum(x.nbytes() for x in others.values()), max(of_block.values(), default=0)


@cache
def _passing(tower: Tower, call: Call, precision: str) -> int:
    types = PRECISIONS[precision]
    weights = _fake_weights(tower.module, types.dtype)

    with torch.no_grad(), _autocast(types), _Answers(), _Peak() as peak:
        _run(tower, weights, call, padded=True)
    return peak.most


@cache
def _flops(tower: Tower, call: Call) -> int:
    weights = _fake_weights(tower.module, torch.float32)
    with (
        torch.no_grad(),
        _Answers(),
        FlopCounterMode(display=False, custom_mapping=_CPU_FLOPS) as counter,
    ):
        _run(tower, weights, call, padded=True)
    return counter.get_total_flops()


def _run(tower: Tower, weights: Mapping[str, Tensor], call: Call, padded: bool) -> None:
    """Runs a tower with fake weights in place of its own."""
    try:
        functional_call(tower.module, weights, tower.inputs(call, padded))
    except Exception as error:  # a library's code raises what it likes
        raise ValueError(
            f"{type(tower.module).__name__} cannot be planned, since its code does not run without "
            f"numbers: {quote(error)} Measure a step of it instead (make bench-gpu)."
        ) from error


def fake(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Returns a tensor without numbers, for the inputs of a tower."""
    with _FAKE:
        return torch.zeros(shape, dtype=dtype)


def _fake_weights(module: nn.Module, dtype: torch.dtype) -> Mapping[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for name, p in module.named_parameters():
        # LoRA updates are float32 whatever the weights' type is.
        of_weight = dtype if p.is_floating_point() and ".lora_" not in name else p.dtype
        weights[name] = nn.Parameter(fake(*p.shape, dtype=of_weight), requires_grad=p.requires_grad)
    for name, x in module.named_buffers():  # transformers leaves their type as it is
        weights[name] = fake(*x.shape, dtype=x.dtype)
    return weights


def _autocast(types: Precision) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=types.autocast)


@contextmanager
def _noted(blocks: tuple[nn.Module, ...], running: list[nn.Module]) -> Iterator[None]:
    """Keeps in `running` the blocks that are under way."""

    def enter(block: nn.Module, _: Any) -> None:
        running.append(block)

    def leave(*_: Any) -> None:
        running.pop()

    hooks = [block.register_forward_pre_hook(enter) for block in blocks]
    hooks += [block.register_forward_hook(leave) for block in blocks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _recomputed(blocks: tuple[nn.Module, ...]) -> Iterator[None]:
    checkpoint_blocks(blocks)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward  # that of the class shows again


@final
class _Answers(TorchDispatchMode):
    """Answers yes-or-no questions about the numbers of a fake tensor: no mask is all ones."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        asks = func is torch.ops.aten._local_scalar_dense.default
        if asks and isinstance(args[0], FakeTensor) and args[0].dtype == torch.bool:
            return False
        return func(*args, **(kwargs or {}))


@final
class _Peak(TorchDispatchMode):
    """Adds up the storages that are alive, and keeps the largest sum."""

    def __init__(self) -> None:
        super().__init__()
        self.most, self._now, self._known = 0, 0, WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor):
                self._add(x.untyped_storage())
        return result

    def _add(self, storage: Any) -> None:
        if storage in self._known:
            return
        size = storage.nbytes()
        self._known[storage] = size
        self._now += size
        self.most = max(self.most, self._now)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self._now -= size
