"""Figures of selection on split `train`: how often drafts and kept ones name the target.

The table of facts (`answers`) is used for this scoring only; no model reads it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.bootstrap import MIN_CLUSTERS
from mmemb.records.rationales import ScoredJson
from mmemb.storage.run_folder import ExperimentFolder
from mmemb.storage.shard_index import ShardIndex


def selection_figures(
    experiment: Path, num_resamples: int = 4_000, seed: int = 0
) -> dict[str, Any] | None:
    """Returns keep rate and right-name rates of all and of kept drafts, by draw; the interval
    of their difference is a bootstrap over concepts. The same by task and by writer, whose pool is
    one. None where nothing was selected: an experiment may take its embedder from another one."""
    selected = ExperimentFolder(experiment).selected
    if not selected.exists():
        return None

    index = ShardIndex.open(selected)
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0] * 4)
    tasks: dict[str, list[float]] = defaultdict(lambda: [0.0] * 4)
    writers: dict[str, list[float]] = defaultdict(lambda: [0.0] * 4)

    for entry in index.entries:
        for scored in index.read_json(entry, tuple[ScoredJson, ...]):
            # Equal draws were merged, so each draft counts as often as it was drawn.
            count = scored.count
            right, kept = bool(scored.names_target), scored.kept
            row = [count, count * right, count * kept, count * (kept and right)]

            _add(sums, entry.meta["concept"], row)
            _add(tasks, entry.meta["task"], row)
            _add(writers, scored.writer, row)

    counts_G4 = np.array(list(sums.values()))
    if not len(counts_G4):
        raise ValueError(f"{index.folder} holds no draft: run the stages before again.")

    rates = _rates(counts_G4.sum(0)[None])
    gain_low, gain_high = _gain_bounds(counts_G4, num_resamples, seed)

    return {
        **{name: float(value[0]) for name, value in rates.items()},
        "gain_low": gain_low,
        "gain_high": gain_high,
        "drafts": int(counts_G4[:, 0].sum()),
        "concepts": len(counts_G4),
        "tasks": {
            task: {name: float(v[0]) for name, v in _rates(np.array([row])).items()}
            for task, row in sorted(tasks.items())
            if row[0]
        },
        "writers": {writer: _of_writer(row) for writer, row in sorted(writers.items())},
    }


def _gain_bounds(
    counts_G4: np.ndarray, num_resamples: int, seed: int
) -> tuple[float, float] | tuple[None, None]:
    """Bounds of the 95 % interval of the gain over concepts; None where they are too few."""
    if len(counts_G4) < MIN_CLUSTERS:
        return None, None

    shape = (num_resamples, len(counts_G4))
    chosen = np.random.default_rng(seed).integers(0, len(counts_G4), shape)

    # Concepts are drawn with all of their counts, so a rate stays a ratio of two sums.
    draws = _rates(counts_G4[chosen].sum(1))
    low, high = np.nanquantile(draws["gain"], [0.025, 0.975])
    return float(low), float(high)


def _of_writer(row: Sequence[float]) -> dict[str, int]:
    return dict(zip(("drawn", "right", "kept", "right_kept"), map(int, row), strict=True))


def _add(table: dict[str, list[float]], key: str, row: Sequence[float]) -> None:
    table[key] = [a + b for a, b in zip(table[key], row, strict=True)]


def _rates(counts_R4: np.ndarray) -> dict[str, np.ndarray]:
    total, right, kept, kept_right = counts_R4.T

    # A resample can hold no kept draft: 0 / 0 is NaN, which the quantiles leave out.
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = {"right": right / total, "keep_rate": kept / total, "right_kept": kept_right / kept}
    return rates | {"gain": rates["right_kept"] - rates["right"]}
