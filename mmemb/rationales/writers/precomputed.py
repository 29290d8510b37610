"""Hands out rationales that were written earlier: the inference path over written shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, final

from torch import Tensor

from mmemb.rationales.store import pool_identity, read_pool
from mmemb.rationales.writers.base import RationaleWorker, check_seeds, drawn_seeds
from mmemb.records.inputs import Side
from mmemb.records.rationales import GREEDY, Rationale

_MODALITIES = frozenset({"text", "image", "video"})


@final
class PrecomputedWorker(RationaleWorker):
    """Finds rationales by the content of a side (`Side.digest`).

    A seed picks the rationale that was drawn with it. Where the pool has no such draw, the first
    one answers `GREEDY`, and another seed its number modulo the pool's size.

    Args:
        rationales: path of a file that `write_pool` wrote; `of_pool` takes a pool itself.
        on_unknown: result for a side that the pool lacks, `error` or `empty` (no rationale).
        reads: modalities that the writer of the rationales could read; by default all.
        name: name of this worker; rationales keep the name of the one that wrote them.
    """

    file_arguments: ClassVar[tuple[str, ...]] = ("rationales",)

    def __init__(
        self,
        rationales: str | None,
        on_unknown: Literal["error", "empty"] = "error",
        reads: Sequence[str] = tuple(sorted(_MODALITIES)),
        name: str = "precomputed",
    ) -> None:
        if on_unknown not in ("error", "empty"):
            raise ValueError(f"on_unknown is {on_unknown!r}; expected 'error' or 'empty'.")

        self.path = rationales
        self.pool = {} if rationales is None else read_pool(rationales)
        self.on_unknown, self.reads, self.name = on_unknown, frozenset(reads), name

    @classmethod
    def of_pool(
        cls,
        pool: Mapping[str, Sequence[Rationale]],
        on_unknown: Literal["error", "empty"] = "error",
    ) -> PrecomputedWorker:
        """Returns a worker over a pool in memory, which cannot be saved."""
        worker = cls(None, on_unknown)
        worker.pool = dict(pool)
        return worker

    def config(self) -> dict[str, Any]:
        if self.path is None:
            raise ValueError(
                "This PrecomputedWorker holds its rationales in memory and cannot be saved. Write "
                "them with mmemb.rationales.write_pool and make the worker from that file."
            )
        arguments = {"rationales": self.path, "on_unknown": self.on_unknown}
        return arguments | {"reads": sorted(self.reads), "name": self.name}

    def identity(self) -> str:
        return pool_identity(self.pool)

    def write(self, sides: Sequence[Side], seeds_BK: Tensor) -> list[list[Rationale]]:
        check_seeds(sides, seeds_BK)
        return [
            [_pick(pool, seed) for seed in drawn_seeds(seeds_K)]
            if self.can_read(side) and (pool := self._pool_of(side))
            else []
            for side, seeds_K in zip(sides, seeds_BK, strict=True)
        ]

    def _pool_of(self, side: Side) -> Sequence[Rationale]:
        pool = self.pool.get(side.digest)
        if pool is None and self.on_unknown == "error":
            raise ValueError(
                f"No rationale was written for the side {side.text[:60]!r} (digest {side.digest}) "
                f"in {self.path or 'the given pool'}. Generate it, or set on_unknown: empty."
            )
        return pool or ()


def _pick(pool: Sequence[Rationale], seed: int) -> Rationale:
    drawn = [rationale for rationale in pool if rationale.seed == seed]
    if drawn:
        return drawn[0]
    return pool[0 if seed == GREEDY else seed % len(pool)]
