"""Draws found again by content: what the side holds, who writes, and with which seed.

It depends on the records that stage 1 keeps beside its drafts, and on no model.
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

from mmemb.rationales.writers.base import NO_DRAW, RationaleWriter, drawn_seeds
from mmemb.records.inputs import Side
from mmemb.records.rationales import Rationale
from mmemb.records.schema import Schema, SchemaError, parse_json, to_json
from mmemb.storage.manifests import IndexEntry
from mmemb.storage.shard_index import ShardIndex

DRAWS, PROMPT_STATE, DIGEST = "draws.json", "prompt_state.npy", "digest"
"""Members of a sidecar's sample: all draws of its row, before they are merged and cleaned; the
hidden state. The third is the key in the index for the digest of its side."""

CAPACITY = 20_000


@dataclass(slots=True)
class _Page:
    """The draws of one side by (writer, seed), and its prompt states by identity of the writer.

    `earlier` holds the draws that came from another folder.
    """

    draws: dict[tuple[str, int], Rationale] = field(default_factory=dict)
    prompt_states: dict[str, Tensor] = field(default_factory=dict)
    earlier: frozenset[tuple[str, int]] = frozenset()


@final
class DrawBook:
    """Asks writers only for draws that neither earlier runs nor this one have made.

    A draw depends on its side, its writer and its seed alone (`RationaleWriter.write`), so a copy
    equals what would be written. Sides are told apart by `Side.digest`, writers by `draw_identity`.

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
        self._names: dict[RationaleWriter, tuple[str, str]] = {}
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
        self, writer: RationaleWriter, sides: Sequence[Side], seeds_BK: Tensor
    ) -> list[list[Rationale]]:
        """Writes as `RationaleWriter.write` does; of equal sides only one is written about."""
        name, _ = self._names_of(writer)
        rows = [
            (side, drawn_seeds(seeds_K) if writer.can_read(side) else [])
            for side, seeds_K in zip(sides, seeds_BK, strict=True)
        ]

        # Seeds are keys, so that each is drawn once and in the order in which it was asked for.
        missing: dict[str, tuple[Side, dict[int, None]]] = {}
        for side, seeds in rows:
            page = self._page(side.digest)
            for seed in seeds:
                if (name, seed) not in page.draws:
                    missing.setdefault(side.digest, (side, {}))[1][seed] = None

        num_made = self._make(writer, name, missing)
        draws = [self._found(side, name, seeds) for side, seeds in rows]

        # Copies within this run are the rest: neither from a folder nor drawn now.
        num_reused = sum(
            (name, seed) in self._page(side.digest).earlier
            for side, seeds in rows
            for seed in seeds
        )
        self.counts["reused"] += num_reused
        self.counts["of equal sides"] += sum(map(len, draws)) - num_reused - num_made

        return [[rationale for _, rationale in row] for row in draws]

    def prompt_states(self, writer: RationaleWriter, sides: Sequence[Side]) -> Tensor:
        """Returns hidden states as `RationaleWriter.prompt_states` does; equal sides are read once.

        Returns:
            (B, H) float32, rounded to float16.
        """
        _, name = self._names_of(writer)
        pages = [self._page(side.digest) for side in sides]
        unknown = {
            side.digest: side
            for side, page in zip(sides, pages, strict=True)
            if name not in page.prompt_states
        }

        if unknown:
            # A state read from a folder is float16, so a fresh one is rounded too: both are then
            # equal.
            state_UH = writer.prompt_states(list(unknown.values())).half()
            for digest, state_H in zip(unknown, state_UH, strict=True):
                self._page(digest).prompt_states[name] = state_H

        states = [page.prompt_states[name] for page in pages]
        return torch.stack(states).float() if states else torch.zeros(0, 0)

    def record(
        self,
        side: Side,
        writer_seeds: Sequence[tuple[RationaleWriter, Tensor]],
        state_writer: RationaleWriter | None = None,
    ) -> dict[str, Any]:
        """Returns what must be kept for a later book to find this row; empty without any draw.

        Args:
            side: the side of a row that was just written about.
            writer_seeds: each writer with the seeds (K,) of the row.
            state_writer: the writer whose state the row's `prompt_state.npy` holds.
        """
        draws: dict[str, list[Any]] = {}
        for writer, seeds_K in writer_seeds:
            name, _ = self._names_of(writer)
            if rows := self._found(side, name, drawn_seeds(seeds_K)):
                draws[name] = [[seed, to_json(rationale)] for seed, rationale in rows]

        if not draws and state_writer is None:
            return {}
        state = {} if state_writer is None else {"prompt_state": self._names_of(state_writer)[1]}
        return {DIGEST: side.digest, "draws": draws, **state}

    def trim(self) -> None:
        """Forgets the sides that were not asked about for longest; between batches."""
        for digest in list(self._pages)[: max(0, len(self._pages) - self._capacity)]:
            del self._pages[digest]

    def _make(
        self,
        writer: RationaleWriter,
        name: str,
        missing: Mapping[str, tuple[Side, Mapping[int, None]]],
    ) -> int:
        """Lets the writer write; returns how many draws it made."""
        if not missing:
            return 0

        # One call for all sides, since a writer decodes many draws together.
        width, num_made = max(len(seeds) for _, seeds in missing.values()), 0
        padded = [[*seeds, *[NO_DRAW] * (width - len(seeds))] for _, seeds in missing.values()]
        pools = writer.write([side for side, _ in missing.values()], torch.tensor(padded))

        for (digest, (_, seeds)), pool in zip(missing.items(), pools, strict=True):
            if pool:  # none where a writer that reads the side has nothing to say
                draws = zip(((name, seed) for seed in seeds), pool, strict=True)
                self._page(digest).draws.update(draws)
            num_made += len(pool)
            self.counts["generated tokens"] += sum(rationale.num_tokens for rationale in pool)

        return num_made

    def _found(self, side: Side, name: str, seeds: Sequence[int]) -> list[tuple[int, Rationale]]:
        draws = self._page(side.digest).draws
        return [(seed, draws[name, seed]) for seed in seeds if (name, seed) in draws]

    def _names_of(self, writer: RationaleWriter) -> tuple[str, str]:
        """Identities of a writer's draws and prompt states; computed once, as some hash files."""
        if writer not in self._names:
            self._names[writer] = (writer.draw_identity(), writer.prompt_state_identity())
        return self._names[writer]

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
                _add(page, digest, index.read(entry, {DRAWS, PROMPT_STATE}), where)
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
    prompt_state: str | None = None


def _add(page: _Page, digest: str, members: Mapping[str, bytes], where: str) -> None:
    data = parse_json(members.get(DRAWS, b""), _DrawsJson, where)

    # The index was read when the run began; the shard may have been replaced since.
    if data.digest != digest:
        raise ValueError(f"it is about another side, {data.digest}, instead of {digest}")

    for name, draws in data.draws.items():
        page.draws |= {(name, seed): rationale for seed, rationale in draws}

    if data.prompt_state is not None:
        if PROMPT_STATE not in members:
            raise ValueError(f"it lacks {PROMPT_STATE}")
        state_H = np.load(io.BytesIO(members[PROMPT_STATE]), allow_pickle=False)
        page.prompt_states[data.prompt_state] = torch.from_numpy(state_H)
