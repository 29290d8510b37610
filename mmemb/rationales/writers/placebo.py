"""Control: every side gets a rationale that was written about another side.

See docs/method.md section 10.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, final

from msgspec.structs import replace
from torch import Tensor

from mmemb.rationales.store import pool_identity, read_pool
from mmemb.rationales.writers.base import RationaleWorker, check_seeds, drawn_seeds
from mmemb.records.hashing import stable_hash
from mmemb.records.inputs import Side
from mmemb.records.rationales import Rationale


@final
class ForeignWorker(RationaleWorker):
    """Hands out rationales about other sides.

    A model that profits from them uses the look of a rationale, not its content.

    Args:
        pool: other sides' rationales by digest, or path of a file that `write_pool` wrote.
        name: recorded as the rationales' worker.
    """

    file_arguments: ClassVar[tuple[str, ...]] = ("pool",)

    def __init__(
        self, pool: str | Mapping[str, Sequence[Rationale]], name: str = "foreign"
    ) -> None:
        self.path = pool if isinstance(pool, str) else None
        self.name, self.reads = name, frozenset({"text", "image", "video"})
        pool = read_pool(pool) if isinstance(pool, str) else pool
        self._donors = {digest: tuple(pool[digest]) for digest in sorted(pool) if pool[digest]}

    def config(self) -> dict[str, Any]:
        if self.path is None:
            raise ValueError(
                "This ForeignWorker holds its pool in memory and cannot be saved. Write the pool "
                "with mmemb.rationales.write_pool and make the worker from that file."
            )
        return {"pool": self.path, "name": self.name}

    def identity(self) -> str:
        return pool_identity(self._donors)

    def write(self, sides: Sequence[Side], seeds_BK: Tensor) -> list[list[Rationale]]:
        check_seeds(sides, seeds_BK)
        return [
            [self._foreign(side, seed) for seed in drawn_seeds(seeds_K)]
            if self.can_read(side)
            else []
            for side, seeds_K in zip(sides, seeds_BK, strict=True)
        ]

    def _foreign(self, side: Side, seed: int) -> Rationale:
        own = {rationale.text for rationale in self._donors.get(side.digest, ())}
        donors = list(self._donors)
        first = stable_hash(self.name, side.digest, seed)

        # The next donor serves where one is the side itself or has the very same text.
        for step in range(len(donors)):
            digest = donors[(first + step) % len(donors)]
            chosen = self._donors[digest][first % len(self._donors[digest])]
            if digest != side.digest and chosen.text not in own:
                return replace(chosen, worker=self.name, seed=seed, count=1)
        raise ValueError(
            f"The pool of {len(donors)} side(s) holds no rationale that is foreign to "
            f"{side.text[:60]!r}. Give a pool with rationales of several sides."
        )
