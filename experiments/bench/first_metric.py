"""`python -m experiments.bench.first_metric`: minutes from a folder of pictures to a metric.

The road of own data, each command in a process of its own as a user types it: `prepare folder`,
`fit own/train`, `test own/test`, over 320 drawings of the prepared pocket with their names as
captions. It is done three times from the start; the bar is two minutes on two idle cores.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from experiments.cli.messages import command
from mmemb.storage.shard_index import ShardIndex

POCKET = Path("data/pocket")
GALLERY, NUM_PICTURES, ROUNDS = "emoji", 320, 3

BAR = 120.0
"""Seconds on two idle cores."""


@command()
def main() -> None:
    """Prints the seconds of each command, and the median of all together."""
    totals = []
    for number in range(ROUNDS):
        before = _cpu_seconds()
        with tempfile.TemporaryDirectory() as folder:
            seconds = measure(Path(folder))
        totals.append(sum(seconds.values()))
        parts = ", ".join(f"{name} {value:.0f}" for name, value in seconds.items())
        # Of a machine that others use, too, these say more than the clock.
        cpu = _cpu_seconds() - before
        print(f"round {number + 1}: {totals[-1]:.0f} s ({parts}), {cpu:.0f} CPU s", flush=True)

    median = statistics.median(totals)
    print(f"from pictures to a metric: {median:.0f} s, median of {ROUNDS}; bar {BAR:.0f} s")
    if median > BAR:
        sys.exit(1)


def measure(folder: Path) -> Mapping[str, float]:
    """Runs the road once; returns command -> seconds.

    Args:
        folder: an empty one, for pictures, data and runs.
    """
    write_pictures(folder / "pictures")
    data, runs = str(folder / "own"), str(folder / "runs")
    shared = ["--data_root", data, "--runs", runs]

    prepare = ["folder", "--pictures", str(folder / "pictures"), "--split", "auto", "--out", data]
    commands = {
        "prepare": ["datamodules.prepare", *prepare],
        "fit": ["experiments.run", "fit", "--config", "own/train", "--encoder", "joint", *shared],
        "test": ["experiments.run", "test", "--config", "own/test", *shared],
    }
    return {name: _run(words) for name, words in commands.items()}


def write_pictures(folder: Path, num: int = NUM_PICTURES, pocket: Path = POCKET) -> None:
    """Writes drawings of the pocket and, beside each, a text with its name.

    Args:
        folder: a new one.
        num: of drawings.
        pocket: the prepared data that they are taken from.
    """
    folder.mkdir()
    index = ShardIndex.open(pocket / "candidates")
    entries = [entry for entry in index.entries if entry.meta["gallery"] == GALLERY]

    for entry in entries[:num]:
        name = str(entry.meta["name"])
        (folder / f"{name}.webp").write_bytes(index.read(entry)["c0.webp"])
        (folder / f"{name}.txt").write_text(name.replace("-", " "), encoding="utf-8")


def _cpu_seconds() -> float:
    """Returns the seconds of all cores that processes of this one have used so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _run(words: list[str]) -> float:
    """Runs a module; returns its seconds. What it printed is shown if it fails."""
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ValueError(f"python -m {' '.join(words)} failed:\n{done.stdout}{done.stderr}")
    return time.monotonic() - start


if __name__ == "__main__":
    main()
