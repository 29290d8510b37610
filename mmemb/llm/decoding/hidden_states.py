"""The hidden state of a language model at the end of a prompt, before it writes.

Shapes: U rows, Q tokens, H width of the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def end_states(model: PreTrainedModel, layer: int | None) -> Iterator[list[Tensor]]:
    """Keeps the last token's state behind a block, (U, H), in the forwards inside the context.

    Rows must be padded on the left. A state of a middle block tells best what a model can answer:
    the last blocks have turned to the next word.

    Args:
        model: of transformers, with its blocks in one ModuleList.
        layer: number of the block; negative ones count from the end; None keeps nothing.

    Yields:
        A list that will hold the states of each forward. It stays empty if the blocks cannot be
        told from other modules, since a model that only writes must not fail for it.

    Raises:
        ValueError: the model has no such block.
    """
    states: list[Tensor] = []

    def keep(module: nn.Module, arguments: Any, output: Any) -> None:
        # The last place of every row is real, since rows are padded on the left.
        state_UQH = output[0] if isinstance(output, tuple) else output
        states.append(state_UQH[:, -1].float().cpu())

    num_layers = model.config.get_text_config().num_hidden_layers
    if layer is None or (blocks := _blocks(model, num_layers)) is None:
        yield states
        return

    if not -num_layers <= layer < num_layers:
        raise ValueError(
            f"probe_layer is {layer}, but the model has {num_layers} blocks: "
            f"choose one from 0 to {num_layers - 1}."
        )

    # The hook goes in any case: a model must not keep states of what is read later.
    handle = blocks[layer].register_forward_hook(keep)
    try:
        yield states
    finally:
        handle.remove()


def _blocks(model: nn.Module, num_layers: int) -> nn.ModuleList | None:
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_layers:
            return module
    return None
