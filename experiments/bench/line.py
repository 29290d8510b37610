"""One line of a bench: two sides measured in turn, and the file that keeps all lines."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, final

import torch

from experiments.runs.origin import made_now
from mmemb.storage.json_files import write_json


@final
@dataclass(frozen=True, slots=True)
class Line:
    """One comparison.

    Attributes:
        ours: median of ours, in seconds or MB.
        other: median of the other.
        ratios: ours / other of every pair of runs.
        peer: what the other is.
        unit: `s` or `MB`.
        bar: what the median ratio should not exceed; None = none was set.
    """

    name: str
    ours: float
    other: float
    ratios: tuple[float, ...]
    peer: str
    unit: Literal["s", "MB"] = "s"
    bar: float | None = None

    @property
    def ratio(self) -> float:
        """Median of the ratios."""
        return statistics.median(self.ratios)

    def __str__(self) -> str:
        factor, unit = (1000, "ms") if self.unit == "s" else (1, "MB")

        spread = f"{min(self.ratios):.2f}-{max(self.ratios):.2f}"
        verdict = "ok" if self.bar is None or self.ratio <= self.bar else "NO"
        bar = "" if self.bar is None else f"{self.bar:.2f} {verdict}"
        values = f"{factor * self.ours:>9.1f}{unit}{factor * self.other:>9.1f}{unit}"

        return f"{self.name:<36}{values}{self.ratio:>7.2f} {spread:<10}{bar:<9}  {self.peer}"


def heading() -> str:
    """Returns the head of the table of lines."""
    return f"{'what':<36}{'ours':>11}{'other':>11}{'ratio':>7} {'spread':<10}{'bar':<9}  other is"


def compare(
    name: str,
    ours: Callable[[], Any],
    peer: Callable[[], Any],
    peer_name: str,
    runs: int = 5,
    bar: float | None = None,
) -> Line:
    """Measures both sides in turn, after one warm-up of each.

    Args:
        name: of the line.
        ours: our side.
        peer: the other side.
        peer_name: names it.
        runs: pairs of measurements.
        bar: see `Line`.
    """
    # In turn, not one after the other: a machine's speed drifts, and only ratios travel.
    ours(), peer()
    seconds = [(seconds_of(ours), seconds_of(peer)) for _ in range(runs)]

    mine, theirs = (statistics.median(column) for column in zip(*seconds, strict=True))
    return Line(name, mine, theirs, tuple(a / b for a, b in seconds), peer_name, bar=bar)


def seconds_of(function: Callable[[], Any]) -> float:
    """Returns the seconds that one call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def write_results(path: Path, lines: Sequence[Line], peers: Sequence[str] = ()) -> None:
    """Writes all lines, with the machine and the versions that they were measured on.

    Args:
        path: e.g. `benchmarks/results.json`.
        lines: all of the bench.
        peers: packages whose versions are written, too.
    """
    origin = made_now()
    origin["versions"] |= {name: metadata.version(name) for name in peers}
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        **origin,
    }

    rows = [asdict(line) | {"ratio": line.ratio} for line in lines]
    write_json(path, {"machine": machine, "lines": rows})
    print(f"{path}")
