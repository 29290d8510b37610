"""Pools of rationales by `Side.digest`: their file, and writers that hand out what it holds.

See docs/method.md section 10 for the control.
"""

from __future__ import annotations

import json
from abc import ABC
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, final

from msgspec.structs import replace

from mmemb.rationales.writers.base import DrawingWriter
from mmemb.records.hashing import stable_hash
from mmemb.records.inputs import Side
from mmemb.records.rationales import GREEDY, Rationale
from mmemb.records.schema import parse_json, to_json
from mmemb.storage.files import write_atomically
from mmemb.storage.spec import arguments_of

_MODALITIES = ("image", "text", "video")

Pool = dict[str, tuple[Rationale, ...]]


def pool_identity(pool: Mapping[str, Sequence[Rationale]]) -> str:
    """Hash of a pool's content."""
    rows = ((digest, tuple(pool[digest])) for digest in sorted(pool))
    return f"{stable_hash(*rows, bits=64):016x}"


def write_pool(path: str | Path, pool: Mapping[str, Sequence[Rationale]]) -> None:
    """Writes a pool as JSON: digest -> list of rationales."""
    # Sorted, so that equal pools give equal bytes.
    rows = {digest: [to_json(r) for r in pool[digest]] for digest in sorted(pool)}
    text = json.dumps(rows, ensure_ascii=False, allow_nan=False, indent=1)
    write_atomically(path, f"{text}\n".encode())


def read_pool(path: str | Path) -> Pool:
    """Reads what `write_pool` wrote."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"There is no file of rationales {path}: `prepare folder --rationales FILE` writes one "
            "for own data, mmemb.rationales.write_pool from Python."
        ) from None
    return parse_json(
        data,
        Pool,
        f"The file of rationales {path} cannot be read",
        "Expected a JSON object that maps the digest of a side to a list of rationales, as "
        "write_pool makes it.",
    )


class PoolWriter(DrawingWriter, ABC):
    """Reads a pool: the rationales about each side, by its digest.

    Args:
        path: path of a file that `write_pool` wrote.
        name: name of this writer.
        reads: modalities that the writer of the rationales could read.
    """

    def __init__(self, path: str, name: str, reads: Sequence[str] = _MODALITIES) -> None:
        self.path, self.name, self.reads = path, name, frozenset(reads)
        self.pool = read_pool(path)

    def identity(self) -> str:
        return pool_identity(self.pool)


@final
class PrecomputedWriter(PoolWriter):
    """Finds rationales by the content of a side (`Side.digest`).

    A seed picks the rationale that was drawn with it. Where the pool has no such draw, the first
    one answers `GREEDY`, and another seed its number modulo the pool's size.

    Args:
        rationales: path of a file that `write_pool` wrote.
        on_unknown: result for a side that the pool lacks, `error` or `empty` (no rationale).
        reads: modalities that the writer of the rationales could read; by default all.
        name: name of this writer; rationales keep the name of the one that wrote them.
    """

    file_arguments: ClassVar[tuple[str, ...]] = ("rationales",)

    def __init__(
        self,
        rationales: str,
        on_unknown: Literal["error", "empty"] = "error",
        reads: Sequence[str] = _MODALITIES,
        name: str = "precomputed",
    ) -> None:
        if on_unknown not in ("error", "empty"):
            raise ValueError(f"on_unknown is {on_unknown!r}; expected 'error' or 'empty'.")

        super().__init__(rationales, name, reads)
        self.on_unknown = on_unknown

    def config(self) -> dict[str, Any]:
        return arguments_of(self, rationales=self.path, reads=sorted(self.reads))

    def _draw(self, seeded_sides: Sequence[tuple[Side, int]]) -> list[Rationale | None]:
        return [self._pick(side, seed) for side, seed in seeded_sides]

    def _pick(self, side: Side, seed: int) -> Rationale | None:
        pool = self.pool.get(side.digest)
        if pool is None and self.on_unknown == "error":
            raise ValueError(
                f"No rationale was written for the side {side.text[:60]!r} (digest {side.digest}) "
                f"in {self.path}. Generate it, or set on_unknown: empty."
            )
        if not pool:
            return None

        draws = [rationale for rationale in pool if rationale.seed == seed]
        return draws[0] if draws else pool[0 if seed == GREEDY else seed % len(pool)]


@final
class PlaceboWriter(PoolWriter):
    """Control: every side gets a rationale that was written about another side.

    A model that profits from them uses the look of a rationale, not its content.

    Args:
        pool: path of a file that `write_pool` wrote, with other sides' rationales.
        name: recorded as the rationales' writer.
    """

    file_arguments: ClassVar[tuple[str, ...]] = ("pool",)

    def __init__(self, pool: str, name: str = "foreign") -> None:
        # The name decides the draws, so its default is that of the first version.
        super().__init__(pool, name)
        self.pool = {digest: self.pool[digest] for digest in sorted(self.pool) if self.pool[digest]}

    def config(self) -> dict[str, Any]:
        return arguments_of(self, pool=self.path)

    def _draw(self, seeded_sides: Sequence[tuple[Side, int]]) -> list[Rationale]:
        return [self._placebo(side, seed) for side, seed in seeded_sides]

    def _placebo(self, side: Side, seed: int) -> Rationale:
        own_texts = {rationale.text for rationale in self.pool.get(side.digest, ())}
        donors = list(self.pool)
        first = stable_hash(self.name, side.digest, seed)

        # The next donor serves where one is the side itself or has the very same text.
        for step in range(len(donors)):
            digest = donors[(first + step) % len(donors)]
            chosen = self.pool[digest][first % len(self.pool[digest])]
            if digest != side.digest and chosen.text not in own_texts:
                return replace(chosen, writer=self.name, seed=seed, count=1)
        raise ValueError(
            f"The pool of {len(donors)} side(s) holds no rationale that is a placebo for "
            f"{side.text[:60]!r}. Give a pool with rationales of several sides."
        )
