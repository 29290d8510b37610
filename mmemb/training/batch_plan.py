"""Samples of the global batch of each step, as a pure function of the step.

A batch is made of homogeneous groups (docs/method.md section 6); rank r of W takes the r-th of W
equal slices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import gcd, lcm
from typing import final

import numpy as np
from numpy.typing import NDArray

from mmemb.records.hashing import stable_hash
from mmemb.records.inputs import TOKENS_PER_PICTURE
from mmemb.storage.manifests import IndexEntry

MAX_CYCLE = 10_000


@final
class BatchPlan:
    """The endless sequence of global batches; every step can be computed directly, at equal cost.

    Which candidate space a homogeneous group comes from is read off a shuffled cycle that holds
    every space exactly in proportion to its weight. A space runs through epochs: each epoch takes
    all of its samples once, shards in shuffled order, shuffled within windows (so that reads stay
    local in large data sets).

    Args:
        entries: samples; `meta["source"]` names the candidate space.
        batch_size: of the global batch, a multiple of `group_size`.
        group_size: consecutive samples that come from one space.
        weights: space -> weight, decimals or whole numbers; empty = by number of samples.
        seed: another seed is another order.
        window: samples that are shuffled among themselves.
    """

    def __init__(
        self,
        entries: Sequence[IndexEntry],
        *,
        batch_size: int,
        group_size: int,
        weights: Mapping[str, float],
        seed: int,
        window: int = 4096,
    ) -> None:
        if batch_size < 1 or group_size < 1 or batch_size % group_size:
            raise ValueError(
                f"batch_size {batch_size} and group_size {group_size}: expected positive numbers, "
                f"batch_size a multiple of group_size."
            )

        self._slots, self._group_size = batch_size // group_size, group_size
        self._seed, self._window = seed, window

        self._members = _positions_by_group(entries)
        self._shares = _whole_shares(weights, self._members, group_size)
        self._names = sorted(self._shares)

        shards = {name: i for i, name in enumerate(dict.fromkeys(e.shard for e in entries))}
        self._shard_of = np.array([shards[e.shard] for e in entries], dtype=np.int64)

        # Few are kept: an old turn or epoch can be made again from its seed.
        self._epochs: dict[tuple[str, int], NDArray[np.int64]] = {}
        self._cycles: dict[int, NDArray[np.int64]] = {}

    @property
    def groups(self) -> Mapping[str, int]:
        """Candidate space -> how often it occurs in one cycle of groups."""
        return dict(self._shares)

    def positions(self, step: int) -> list[int]:
        """Positions of the global batch of `step`, `batch_size` of them."""
        slots = range(step * self._slots, (step + 1) * self._slots)
        return [position for slot in slots for position in self._group(slot)]

    def substitutes(self, position: int) -> list[int]:
        """Samples in place of a broken one: the others of its space, nearest successor first."""
        group = next(m for m in self._members.values() if position in m)
        at = int(np.searchsorted(group, position))
        return [*map(int, group[at + 1 :]), *map(int, group[:at])]

    def _group(self, slot: int) -> list[int]:
        turn, at = divmod(slot, sum(self._shares.values()))
        cycle = self._cycle(turn)
        name = self._names[cycle[at]]

        # Earlier groups of the same space, so that a step needs no state of the steps before it.
        before = turn * self._shares[name] + int((cycle[:at] == cycle[at]).sum())
        first = before * self._group_size
        return [self._member(name, i) for i in range(first, first + self._group_size)]

    def _member(self, name: str, ordinal: int) -> int:
        epoch, at = divmod(ordinal, len(self._members[name]))
        return int(self._epoch(name, epoch)[at])

    def _cycle(self, turn: int) -> NDArray[np.int64]:
        if turn not in self._cycles:
            counts = [self._shares[name] for name in self._names]
            cycle = np.repeat(np.arange(len(counts)), counts)
            _remember(self._cycles, turn, self._generator("cycle", turn).permutation(cycle), 4)
        return self._cycles[turn]

    def _epoch(self, name: str, epoch: int) -> NDArray[np.int64]:
        if (name, epoch) not in self._epochs:
            random = self._generator("epoch", name, epoch)
            order = _windowed_shuffle(
                self._members[name], self._shard_of[self._members[name]], random, self._window
            )

            # Two per space: a group may begin in one epoch and end in the next.
            _remember(self._epochs, (name, epoch), order, 2 * len(self._names))
        return self._epochs[name, epoch]

    def _generator(self, *parts: object) -> np.random.Generator:
        return np.random.default_rng(stable_hash(self._seed, *parts))


def rank_slice(positions: Sequence[int], rank: int, world: int) -> list[int]:
    """The part of a global batch that one rank reads; all parts are equally long.

    >>> rank_slice([5, 6, 7, 8], 1, 2)
    [7, 8]
    """
    if len(positions) % world:
        raise ValueError(f"A batch of {len(positions)} cannot be split evenly over {world} ranks.")

    size = len(positions) // world
    return list(positions[rank * size : (rank + 1) * size])


def balanced_parts(positions: Sequence[int], costs: Sequence[int], world: int) -> list[list[int]]:
    """The parts of all ranks: equally many samples, and tokens as equal as a greedy choice makes
    them. A rank with all videos of a batch would keep the ranks with its texts waiting.

    Args:
        positions: of the global batch.
        costs: tokens of each position.
        world: number of ranks.

    >>> balanced_parts([5, 6, 7, 8], [9, 9, 1, 1], 2)
    [[5, 7], [6, 8]]
    """
    size = len(rank_slice(positions, 0, world))
    parts: list[list[int]] = [[] for _ in range(world)]
    tokens = [0] * world

    # The most expensive samples first, each to the rank with the fewest tokens that has room; ties
    # by number, so that all ranks compute the same parts.
    for number in sorted(range(len(positions)), key=lambda n: (-costs[n], n)):
        rank = min((r for r in range(world) if len(parts[r]) < size), key=lambda r: (tokens[r], r))
        parts[rank].append(number)
        tokens[rank] += costs[number]
    return [[positions[number] for number in sorted(part)] for part in parts]


def entry_tokens(entry: IndexEntry) -> int:
    """About how many tokens a sample takes, by its index alone: see `Side.num_tokens`."""
    return 1 + entry.members.get("json", (0, 0))[1] // 4 + TOKENS_PER_PICTURE * len(entry.media)


def _positions_by_group(entries: Sequence[IndexEntry]) -> dict[str, NDArray[np.int64]]:
    positions: dict[str, list[int]] = {}
    for position, entry in enumerate(entries):
        positions.setdefault(entry.meta.get("source", ""), []).append(position)
    return {name: np.array(rows, dtype=np.int64) for name, rows in positions.items()}


def _whole_shares(
    weights: Mapping[str, float], members: Mapping[str, Sequence[int]], group_size: int
) -> dict[str, int]:
    if not members:
        raise ValueError("No sample to train on: every one was filtered out, or none was given.")

    if not weights:
        weights = {name: max(1, round(len(rows) / group_size)) for name, rows in members.items()}

    if set(weights) != set(members) or min(weights.values()) < 0 or not any(weights.values()):
        raise ValueError(
            f"Group weights {dict(weights)}: expected one weight >= 0 (0 leaves a group out), not "
            f"all 0, for each of {sorted(members)}."
        )

    # Exact fractions: 0.1 as a float has no small denominator, and its cycle would be endless.
    exact = {name: Fraction(str(weight)) for name, weight in weights.items() if weight}
    scale = lcm(*(weight.denominator for weight in exact.values()))

    counts = {name: int(weight * scale) for name, weight in exact.items()}
    shares = {name: count // gcd(*counts.values()) for name, count in counts.items()}

    if sum(shares.values()) > MAX_CYCLE:
        raise ValueError(f"Group weights {dict(weights)}: use short decimals or whole numbers.")
    return shares


def _windowed_shuffle(
    positions: NDArray[np.int64],
    shard_of: NDArray[np.int64],
    random: np.random.Generator,
    window: int,
) -> NDArray[np.int64]:
    shards = random.permutation(np.unique(shard_of))

    order = np.concatenate([positions[shard_of == shard] for shard in shards])

    # A window bounds how far apart the reads of neighbouring samples lie.
    windows = [order[i : i + window] for i in range(0, len(order), window)]
    return np.concatenate([random.permutation(part) for part in windows])


def _remember(cache: dict, key: object, value: object, size: int) -> None:
    cache[key] = value
    while len(cache) > size:
        del cache[next(iter(cache))]
