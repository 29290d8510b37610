"""Draws found again by content: what the side holds, who writes, and with which seed.

It depends on the records that stage 1 keeps beside its candidates, and on no model.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from mmemb.rationales.writers.base import NO_DRAW, RationaleWorker, drawn_seeds
from mmemb.records.inputs import Side
from mmemb.records.rationales import Rationale
from mmemb.records.schema import Schema, SchemaError, parse_json, to_json
from mmemb.storage.manifests import IndexEntry
from mmemb.storage.shard_index import ShardIndex

DRAWS, PROBE, DIGEST = "draws.json", "probe.npy", "digest"
"""Members of a sidecar's sample: all draws of its row, before they are merged and cleaned; the
hidden state. The third is the key in the index for the digest of its side."""

CAPACITY = 20_000


@dataclass(slots=True)
class _Page:
    """Draws of one side by (writer, seed), and its probes by the probed worker.

    `earlier` holds the draws that came from another folder.
    """

    draws: dict[tuple[str, int], Rationale] = field(default_factory=dict)
    probes: dict[str, Tensor] = field(default_factory=dict)
    earlier: frozenset[tuple[str, int]] = frozenset()


@final
class DrawBook:
    """Asks workers only for draws that neither earlier runs nor this one have made.

    A draw depends on its side, its worker and its seed alone (`RationaleWorker.write`), so a copy
    equals what would be written. Sides are told apart by `Side.digest`, workers by `draw_identity`.

    Args:
        folders: finished folders `rationales/` that were themselves written with a book.
        counts: gets `reused` (draws from those folders), `of equal sides` (draws copied within
            this run) and `generated tokens`.
        capacity: number of sides, used last, whose draws the book remembers.

    Raises:
        FileNotFoundError: there is no such folder, or it is not finished.
        ValueError: a folder holds no draw that could be found again.
    """

    def __init__(
        self, folders: Sequence[str], counts: Counter[str], capacity: int = CAPACITY
    ) -> None:
        self.counts, self._capacity = counts, capacity
        counts.update(dict.fromkeys(("reused", "of equal sides", "generated tokens"), 0))

        self._pages: dict[str, _Page] = {}
        self._names: dict[RationaleWorker, tuple[str, str]] = {}
        self._places: dict[str, list[tuple[ShardIndex, IndexEntry]]] = {}

        for index in map(ShardIndex.open, folders):
            entries = [entry for entry in index.entries if DIGEST in entry.meta]
            for entry in entries:
                self._places.setdefault(entry.meta[DIGEST], []).append((index, entry))
            if not entries:
                raise ValueError(
                    f"{index.folder} keeps no draws that could be found again. Reuse folders that "
                    "RationaleGenerator wrote with `reuse` set (an empty list will do) or with "
                    "`seed_by: content`; docs/rationales.md says more."
                )

    def write(
        self, worker: RationaleWorker, sides: Sequence[Side], seeds_BK: Tensor
    ) -> list[list[Rationale]]:
        """Writes as `RationaleWorker.write` does; of equal sides only one is written about."""
        name, _ = self._names_of(worker)
        rows = [
            (side, drawn_seeds(seeds_K) if worker.can_read(side) else [])
            for side, seeds_K in zip(sides, seeds_BK, strict=True)
        ]

        # Seeds are keys, so that each is drawn once and in the order in which it was asked for.
        missing: dict[str, tuple[Side, dict[int, None]]] = {}
        for side, seeds in rows:
            page = self._page(side.digest)
            for seed in seeds:
                if (name, seed) not in page.draws:
                    missing.setdefault(side.digest, (side, {}))[1][seed] = None

        num_made = self._make(worker, name, missing)
        found = [self._found(side, name, seeds) for side, seeds in rows]

        # Copies within this run are the rest: neither from a folder nor drawn now.
        num_reused = sum(
            (name, seed) in self._page(side.digest).earlier
            for side, seeds in rows
            for seed in seeds
        )
        self.counts["reused"] += num_reused
        self.counts["of equal sides"] += sum(map(len, found)) - num_reused - num_made

        return [[rationale for _, rationale in row] for row in found]

    def probe(self, worker: RationaleWorker, sides: Sequence[Side]) -> Tensor:
        """Returns hidden states as `RationaleWorker.probe` does; equal sides are probed once.

        Returns:
            (B, H) float32, rounded to float16.
        """
        _, name = self._names_of(worker)
        pages = [self._page(side.digest) for side in sides]
        unknown = {
            side.digest: side
            for side, page in zip(sides, pages, strict=True)
            if name not in page.probes
        }

        if unknown:
            # A state read from a folder is float16, so a fresh one is rounded too: both are then
            # equal.
            state_UH = worker.probe(list(unknown.values())).half()
            for digest, state_H in zip(unknown, state_UH, strict=True):
                self._page(digest).probes[name] = state_H

        states = [page.probes[name] for page in pages]
        return torch.stack(states).float() if states else torch.zeros(0, 0)

    def record(
        self,
        side: Side,
        asked: Sequence[tuple[RationaleWorker, Tensor]],
        probed: RationaleWorker | None = None,
    ) -> dict[str, Any]:
        """Returns what must be kept for a later book to find this row; empty without any draw.

        Args:
            side: the side of a row that was just written about.
            asked: each worker with the seeds (K,) of the row.
            probed: the worker whose state the row's `probe.npy` holds.
        """
        draws: dict[str, list[Any]] = {}
        for worker, seeds_K in asked:
            name, _ = self._names_of(worker)
            if found := self._found(side, name, drawn_seeds(seeds_K)):
                draws[name] = [[seed, to_json(rationale)] for seed, rationale in found]

        if not draws and probed is None:
            return {}
        said = {} if probed is None else {"probe": self._names_of(probed)[1]}
        return {DIGEST: side.digest, "draws": draws, **said}

    def trim(self) -> None:
        """Forgets the sides that were not asked about for longest; between batches."""
        for digest in list(self._pages)[: max(0, len(self._pages) - self._capacity)]:
            del self._pages[digest]

    def _make(
        self,
        worker: RationaleWorker,
        name: str,
        missing: Mapping[str, tuple[Side, Mapping[int, None]]],
    ) -> int:
        """Lets the worker write; returns how many draws it made."""
        if not missing:
            return 0

        # One call for all sides, since a worker decodes many draws together.
        width, num_made = max(len(seeds) for _, seeds in missing.values()), 0
        padded = [[*seeds, *[NO_DRAW] * (width - len(seeds))] for _, seeds in missing.values()]
        pools = worker.write([side for side, _ in missing.values()], torch.tensor(padded))

        for (digest, (_, seeds)), pool in zip(missing.items(), pools, strict=True):
            if pool:  # none where a worker that reads the side has nothing to say
                draws = zip(((name, seed) for seed in seeds), pool, strict=True)
                self._page(digest).draws.update(draws)
            num_made += len(pool)
            self.counts["generated tokens"] += sum(rationale.num_tokens for rationale in pool)

        return num_made

    def _found(self, side: Side, name: str, seeds: Sequence[int]) -> list[tuple[int, Rationale]]:
        draws = self._page(side.digest).draws
        return [(seed, draws[name, seed]) for seed in seeds if (name, seed) in draws]

    def _names_of(self, worker: RationaleWorker) -> tuple[str, str]:
        """Identities of a worker's draws and probe; asked once, since some hash whole files."""
        if worker not in self._names:
            self._names[worker] = (worker.draw_identity(), worker.probe_identity())
        return self._names[worker]

    def _page(self, digest: str) -> _Page:
        page = self._pages.pop(digest, None) or self._read(digest)
        self._pages[digest] = page  # the last one used stands last
        return page

    def _read(self, digest: str) -> _Page:
        page = _Page()
        for index, entry in self._places.get(digest, ()):
            place = f"Shard {index.folder / entry.shard}, sample {entry.key}"
            where = f"{place}: its draws cannot be read"
            try:
                _add(page, digest, index.read(entry, {DRAWS, PROBE}), where)
            except ValueError as error:
                problem = error.problem if isinstance(error, SchemaError) else f"{where} ({error})."
                raise ValueError(
                    f"{problem} A folder that a run reuses must not change meanwhile, so it cannot "
                    "be the one that the run writes."
                ) from None

        page.earlier = frozenset(page.draws)
        return page


@final
class _DrawsJson(Schema):
    """The draws that were made about a row's side, as `DrawBook.record` returns them."""

    digest: str
    draws: dict[str, tuple[tuple[int, Rationale], ...]]
    probe: str | None = None


def _add(page: _Page, digest: str, members: Mapping[str, bytes], where: str) -> None:
    data = parse_json(members.get(DRAWS, b""), _DrawsJson, where)

    # The index was read when the run began; the shard may have been replaced since.
    if data.digest != digest:
        raise ValueError(f"it is about another side, {data.digest}, instead of {digest}")

    for name, draws in data.draws.items():
        page.draws |= {(name, seed): rationale for seed, rationale in draws}

    if data.probe is not None:
        if PROBE not in members:
            raise ValueError(f"it lacks {PROBE}")
        state_H = np.load(io.BytesIO(members[PROBE]), allow_pickle=False)
        page.probes[data.probe] = torch.from_numpy(state_H)
