"""Vectors with their costs: the depth, the rationale, its tokens and the time of each input.

Shapes: B inputs, D embedding width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from mmemb.records.rationales import Rationale

_SHOWN = 60
"""Letters of a rationale in the text of a result."""

_ROWS_SHOWN = 5


@final
@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Embedding:
    """One embedded input.

    Attributes:
        vector_D: unit vector, float32.
        depth: name of the depth that was taken; `direct` also where nothing was written.
        num_tokens: reasoning tokens that were spent.
        rationale: what was written; None where the input was embedded directly.
        milliseconds: see `Encoded`; None = not measured.
    """

    vector_D: Tensor
    depth: str
    num_tokens: int
    rationale: Rationale | None
    milliseconds: float | None = None

    def numpy(self) -> np.ndarray:
        """Returns the vector as an array (D,)."""
        return self.vector_D.cpu().numpy()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        return f"Embedding({len(self.vector_D)} numbers, {self._cost()})"

    def _cost(self) -> str:
        """Returns depth, tokens, time and the beginning of the rationale as a text."""
        parts = [self.depth, f"{self.num_tokens} tokens"]
        if self.milliseconds is not None:
            parts.append(f"{self.milliseconds:.0f} ms")

        if self.rationale is not None:
            text = self.rationale.text
            parts.append(repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."))
        return ", ".join(parts)


@final
@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Encoded(Sequence[Embedding]):
    """B embedded inputs; item i is the `Embedding` of input i.

    Attributes:
        vectors_BD: unit vectors, float32.
        depths_B: int64, the depth that was taken as its number in `depth_names`; 0 = direct, also
            where nothing was written.
        tokens_B: int64, reasoning tokens that were spent.
        rationales: B of them; None where an input was embedded directly.
        depth_names: names of all depths of the embedder.
        milliseconds_B: float64, what each input took: the time of a batch is divided equally among
            the inputs that it was spent on, so that the sum is the time of the whole call. None =
            not measured.
    """

    vectors_BD: Tensor
    depths_B: Tensor
    tokens_B: Tensor
    rationales: tuple[Rationale | None, ...]
    depth_names: tuple[str, ...]
    milliseconds_B: Tensor | None = None

    @property
    def depths(self) -> tuple[str, ...]:
        """Names of the depths that were taken."""
        return tuple(self.depth_names[number] for number in self.depths_B.tolist())

    @property
    def shape(self) -> tuple[int, int]:
        """B and D, as of an array."""
        return len(self), self.vectors_BD.shape[1]

    def numpy(self) -> np.ndarray:
        """Returns the vectors as an array (B, D)."""
        return self.vectors_BD.cpu().numpy()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __len__(self) -> int:
        return len(self.rationales)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self._rows(range(len(self))[index])

        row = range(len(self))[index]  # counts from the end, and refuses what lies behind it
        milliseconds = None if self.milliseconds_B is None else float(self.milliseconds_B[row])
        return Embedding(
            self.vectors_BD[row],
            self.depth_names[int(self.depths_B[row])],
            int(self.tokens_B[row]),
            self.rationales[row],
            milliseconds,
        )

    def __iter__(self) -> Iterator[Embedding]:
        return (self[row] for row in range(len(self)))

    def _rows(self, rows: Sequence[int]) -> Encoded:
        index_R = torch.tensor(list(rows), dtype=torch.long)
        milliseconds_B = self.milliseconds_B
        return Encoded(
            self.vectors_BD[index_R],
            self.depths_B[index_R],
            self.tokens_B[index_R],
            tuple(self.rationales[row] for row in rows),
            self.depth_names,
            None if milliseconds_B is None else milliseconds_B[index_R],
        )

    def __repr__(self) -> str:
        counts = [f"{self.depths.count(name)} {name}" for name in self.depth_names]
        parts = [f"{len(self)} x {self.vectors_BD.shape[1]}", ", ".join(counts)]
        parts.append(f"{int(self.tokens_B.sum())} tokens")
        if self.milliseconds_B is not None:
            parts.append(f"{float(self.milliseconds_B.sum()):.0f} ms")

        shown = [f"  {row}: {self[row]._cost()}" for row in range(min(len(self), _ROWS_SHOWN))]
        more = len(self) - len(shown)
        shown += [f"  ... {more} more"] if more else []
        return "\n".join([f"Encoded({'; '.join(parts)})", *shown])


def join_batches(batches: Sequence[Encoded], rows: Sequence[int]) -> Encoded:
    """Joins the results of batches, in the order of the inputs.

    Args:
        batches: at least one, all measured.
        rows: the input that each row of the batches, one behind the other, belongs to.
    """
    place_B = torch.tensor(list(rows), dtype=torch.long).argsort()
    rationales = [rationale for batch in batches for rationale in batch.rationales]
    milliseconds = [batch.milliseconds_B for batch in batches if batch.milliseconds_B is not None]
    return Encoded(
        torch.cat([batch.vectors_BD for batch in batches])[place_B],
        torch.cat([batch.depths_B for batch in batches])[place_B],
        torch.cat([batch.tokens_B for batch in batches])[place_B],
        tuple(rationales[place] for place in place_B.tolist()),
        batches[0].depth_names,
        torch.cat(milliseconds)[place_B] if milliseconds else None,
    )
