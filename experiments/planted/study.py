"""The planted world's three questions (docs/method.md section 10), measured as plain data.

Shapes: B queries, S state width, A depths, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from experiments.bootstrap import Interval
from experiments.planted.coverage import DESIGNS, NUM_CLUSTERS, coverage
from experiments.planted.estimators import ESTIMATORS, fit_gate, gradient_draws, noise_to_signal
from experiments.planted.gate import GATES, PlantedGate, oracle_gap, planted_gate, regret
from experiments.planted.selection import CONTRASTS, SETTINGS, WEAK, compare, read_contrasts
from experiments.planted.world import keep_precision, planted_world
from mmemb.records.hashing import stable_hash

Advance = Callable[[], object]
"""Called after every step, for a progress bar."""

KEEP_RATES = (0.3, 0.5)
PAIRS_PER_CONCEPT = 5
NUM_TEST_QUERIES = 10_000
NUM_GRADIENTS = 1000
POLICY_STEPS = 5
"""Gradients are compared at a policy that has begun to learn: later there is no signal left."""

READINGS: dict[str, dict[str, Any]] = {
    "tau 0.2, 10 hard negatives (as above)": {},
    "5 hard negatives: the look-alikes": {"num_hard_negatives": 5},
    "tau 0.1": {"temperature": 0.1},
    "tau 0.05": {"temperature": 0.05},
    "3 donors, as the selector's default": {"num_placebos": 3},
}
"""Other readings of the mixed world: the ranking of contrasts depends on them."""

MAX_REGRET, COVERAGE_BAR = 0.05, (0.90, 0.98)
"""The bars of regret, as a share of the oracle gap, and of a 95 % interval's coverage."""


def num_steps(seeds: int) -> int:
    """Returns the number of times that `measure` calls `advance`."""
    return len(SETTINGS) + len(READINGS) + seeds * len(GATES) + len(DESIGNS) * len(NUM_CLUSTERS)


def measure(pairs: int, seeds: int, samples: int, advance: Advance) -> dict[str, Any]:
    """Measures all three questions, and which bars hold.

    Args:
        pairs: of a world, and queries that a gate learns from; at least 10.
        seeds: worlds of every setting.
        samples: of a coverage at the smallest number of clusters.
        advance: called `num_steps` times.
    """
    if pairs < 10 or seeds < 1 or samples < 1:
        raise ValueError(
            f"{pairs} pairs, {seeds} seeds, {samples} samples: expected at least 10 pairs, 1 seed "
            "and 1 sample"
        )

    result = {
        "contrasts": measure_contrasts(pairs, seeds, advance),
        "readings": measure_readings(pairs, advance),
        "gates": measure_gates(pairs, seeds, advance),
        "coverage": measure_coverage(samples, advance),
    }

    return result | {"bars": judge(result)}


def seeded(*parts: object) -> torch.Generator:
    """Returns a generator of its own for every draw, whatever else is drawn."""
    return torch.Generator().manual_seed(stable_hash("planted", *parts))


def measure_contrasts(num_pairs: int, seeds: int, advance: Advance) -> dict[str, Any]:
    """Measures precision of every contrast and differences, per share setting and keep rate."""
    rows: dict[str, Any] = {}
    for name, shares in SETTINGS.items():
        worlds = [
            planted_world(
                num_pairs,
                num_concepts=max(1, num_pairs // PAIRS_PER_CONCEPT),
                shares=shares,
                generator=seeded(name, seed),
            )
            for seed in range(seeds)
        ]

        readings = [read_contrasts(w, seeded(name, s, "donors")) for s, w in enumerate(worlds)]
        rows[name] = {str(rate): asdict(compare(worlds, readings, rate)) for rate in KEEP_RATES}
        advance()
    return rows


def measure_readings(num_pairs: int, advance: Advance) -> dict[str, dict[str, float]]:
    """Measures precision at the lower keep rate in one mixed world, read in other ways."""
    world = planted_world(num_pairs, generator=seeded("readings"))

    rows = {}
    for name, how in READINGS.items():
        reading = read_contrasts(world, seeded("readings", "donors"), **how)
        rows[name] = {
            c: keep_precision(reading[c], world.helpful, KEEP_RATES[0]) for c in CONTRASTS
        }
        advance()
    return rows


def measure_gates(num_queries: int, seeds: int, advance: Advance) -> dict[str, Any]:
    """Measures regrets as shares of the oracle gap, and gradients; one number per seed each."""
    rows: dict[str, Any] = {}
    for name, how in GATES.items():
        rows[name] = {e: {"regret": [], "noise": [], "cosine": []} for e in ESTIMATORS}
        for seed in range(seeds):
            gate = planted_gate(num_queries, generator=seeded(name, seed), **how)

            # Regret is measured on queries that no head has seen.
            test = planted_gate(NUM_TEST_QUERIES, generator=seeded(name, seed, "test"), **how)

            for estimator, values in _gate(gate, test, seed).items():
                for key, value in values.items():
                    rows[name][estimator][key].append(value)
            advance()
    return rows


def _gate(gate: PlantedGate, test: PlantedGate, seed: int) -> dict[str, dict[str, float]]:
    # A share of the gap compares worlds whose rewards have other scales.
    gap = oracle_gap(test.true_reward)

    # All gradients are taken at one policy, or their noise could not be compared.
    begun = fit_gate(gate, "exact", seeded(seed), num_steps=POLICY_STEPS)
    logit_BA = begun(gate.batch.inputs.embedding_BD)

    gradient = {
        e: gradient_draws(gate, e, logit_BA, seeded(seed), num_draws=NUM_GRADIENTS)
        for e in ESTIMATORS
    }

    exact_P, rows = gradient["exact"].mean(0), {}
    for name in ESTIMATORS:
        head = fit_gate(gate, name, seeded(seed, "actions"))
        mean_P = gradient[name].mean(0)
        rows[name] = {
            "regret": regret(head(test.batch.inputs.embedding_BD), test.true_reward) / gap,
            "noise": noise_to_signal(gradient[name]),
            "cosine": torch.cosine_similarity(mean_P, exact_P, dim=0).item(),
        }
    return rows


def measure_coverage(samples: int, advance: Advance) -> dict[str, Any]:
    """Measures coverage per design and number of clusters; fewer samples where each costs more."""
    rows: dict[str, Any] = {}
    for name, design in DESIGNS.items():
        rows[name] = {}
        for clusters in NUM_CLUSTERS:
            # A sample costs more with more clusters; the root leaves about a third of them at 400.
            num = max(1, round(samples * (NUM_CLUSTERS[0] / clusters) ** 0.5))
            rows[name][str(clusters)] = coverage(design, clusters, num) | {"samples": num}
            advance()
    return rows


def judge(result: Mapping[str, Any]) -> dict[str, list[str]]:
    """Returns the bars, and what misses each: an empty list is a bar that holds."""
    # Each bar lists what misses it, so that a failed bar names its cells.
    contrasts = [
        f"{name} at {rate}: margin - {weak} {Interval(**row['differences'][weak])}"
        for name, rates in result["contrasts"].items()
        for rate, row in rates.items()
        for weak in WEAK
        if not Interval(**row["differences"][weak]).is_above(0)
    ]

    regrets = [
        f"{name}, {estimator}: {np.mean(row[estimator]['regret']):.3f} of the gap"
        for name, row in result["gates"].items()
        for estimator in ("reinforce", "exact")
        if np.mean(row[estimator]["regret"]) >= MAX_REGRET
    ]

    covered = [
        f"{name}, {clusters} clusters: {Interval(row['coverage'], row['low'], row['high'])}"
        for name, rows in result["coverage"].items()
        for clusters, row in rows.items()
        if not COVERAGE_BAR[0] <= row["coverage"] <= COVERAGE_BAR[1]
    ]

    return {
        "margin beats raw and positive, intervals above 0": contrasts,
        "regret of reinforce and exact under 5 % of the oracle gap": regrets,
        "coverage of the 95 % interval between 90 and 98 %": covered,
    }
