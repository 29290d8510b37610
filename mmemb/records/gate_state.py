"""The gate's view of a query before anything is written, and the state that is made from it.

See docs/method.md section 7.

Shapes: B queries, N candidates, D embedding width, H width of a prompt state, S width of the state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from mmemb.records.precision import to_float64_device

StatePart = Literal["embedding", "scores", "prompt_state"]
"""In order of price: the direct embedding; the shape of its scores over the candidates; the
writer's hidden state at the end of its prompt (a prefill, no generated token)."""


class GateInputs(NamedTuple):
    """Measured parts of the state of B queries; a part that was not measured has width 0.

    Attributes:
        embedding_BD: the direct embedding.
        scores_B3: `score_shape` of its scores.
        prompt_state_BH: the writer's hidden state; 0 where the writer cannot read the query.
    """

    embedding_BD: Tensor
    scores_B3: Tensor
    prompt_state_BH: Tensor

    @classmethod
    def of_embedding(cls, embedding_BD: Tensor) -> GateInputs:
        """Nothing but the direct embedding."""
        empty_B0 = embedding_BD.new_zeros(len(embedding_BD), 0)
        return cls(embedding_BD, empty_B0, empty_B0)

    def state(self, parts: Sequence[StatePart]) -> Tensor:
        """The parts side by side, (B, S) float32.

        Raises:
            ValueError: a part was not measured.
        """
        columns = [self._part(part) for part in parts]

        # Saved prompt states are fp16; a head reads float32.
        return torch.cat([x.float() for x in columns], dim=1)

    def map(self, function: Callable[[Tensor], Tensor]) -> GateInputs:
        """The same with `function` applied to each tensor."""
        return GateInputs(*map(function, self))

    def _part(self, part: StatePart) -> Tensor:
        value = {
            "embedding": self.embedding_BD,
            "scores": self.scores_B3,
            "prompt_state": self.prompt_state_BH,
        }
        if not value[part].shape[1]:
            raise ValueError(f"The gate's state asks for {part!r}, {_HOW[part]}")
        return value[part]


_HOW = {
    "embedding": "but the depth values hold none: make them again.",
    "scores": "but the depth values hold none, or no `gallery` was given to `encode`.",
    "prompt_state": "but none was kept: set `prompt_state` of RationaleGenerator to a writer's "
    "name, and make rationales and depth values again; or leave it out of the gate's `state`.",
}


def check_parts(parts: Sequence[str]) -> tuple[StatePart, ...]:
    """The parts of a state as asked for in a configuration.

    >>> check_parts(["embedding", "prompt_state"])
    ('embedding', 'prompt_state')
    """
    # A part named twice would count twice in the state's width.
    names = get_args(StatePart)
    if not parts or len(set(parts)) < len(parts) or not set(parts) <= set(names):
        raise ValueError(f"state {list(parts)}: expected some of {list(names)}, each once")
    return tuple(parts)  # type: ignore[return-value]


def score_shape(score_BN: Tensor) -> Tensor:
    """Best log-probability, its lead over the second, and the entropy of a softmax; (B, 3).

    The candidates' order does not matter, so galleries of any size have the same three numbers.

    Args:
        score_BN: similarities divided by a temperature; at least one candidate.

    >>> score_shape(torch.tensor([[2.0, 2.0]])).tolist()[0][1]
    0.0
    """
    # A single candidate has no second one, and a lead of 0.
    log_p_BN = to_float64_device(score_BN).double().log_softmax(1)
    top_B2 = log_p_BN.topk(min(2, log_p_BN.shape[1]), dim=1).values
    entropy_B = -(log_p_BN.exp() * log_p_BN).sum(1)
    return torch.stack([top_B2[:, 0], top_B2[:, 0] - top_B2[:, -1], entropy_B], dim=1).float()
