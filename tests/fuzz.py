"""Gives changed inputs to the readers of the project and says which they read wrongly.

    python -m tests.fuzz --seconds 60
    python -m tests.fuzz --seconds 600 --kind tars tables --seed 7
    python -m tests.fuzz --replay runs/fuzz/tars-1234abcd

An input is to be read right, or refused in one sentence that names its file, row or key, within
bounds of time and memory. Whatever else happens is a fault: its input is saved. A repaired one may
be kept in `tests/fuzz_corpus`, which is read before anything else.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch

from tests.fuzzing import KINDS
from tests.fuzzing.hunt import Tally, hunt

CORPUS = Path(__file__).parent / "fuzz_corpus"


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; its status is 1 if there is a fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="for all kinds together")
    parser.add_argument("--kind", nargs="+", choices=sorted(KINDS), default=list(KINDS))
    parser.add_argument("--seed", default="0", help="other seeds make other inputs")
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"), help="for faults")
    parser.add_argument("--replay", type=Path, help="a saved input, tried once")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # a child would wait for threads that the fork lost

    if options.replay:
        name = options.replay.name.split("-")[0]
        tallies = {name: _tried(name, [options.replay.read_bytes()], options)}
    else:
        tallies = {name: _tried(name, None, options) for name in options.kind}
    print(_table(tallies))
    return int(any(tally.faults for tally in tallies.values()))


def corpus(name: str) -> list[bytes]:
    """Inputs of a kind that were faults once."""
    return [path.read_bytes() for path in sorted(CORPUS.glob(f"{name}-*"))]


def _tried(name: str, given: list[bytes] | None, options: argparse.Namespace) -> Tally:
    """What came of the given inputs; without any, of the corpus, the seeds, and changed ones."""
    with tempfile.TemporaryDirectory() as folder:
        kind = KINDS[name](Path(folder))
        known = [*corpus(name), *kind.seeds] if given is None else given

        def inputs(number: int) -> bytes | None:
            if number < len(known):
                return known[number]
            return kind.input(options.seed, number) if given is None else None

        tally = hunt(kind, inputs, options.seconds / len(options.kind), options.out)

    for path, fault in tally.saved.values():
        print(f"{name}: {fault}\n    python -m tests.fuzz --replay {path}", flush=True)
    return tally


def _table(tallies: dict[str, Tally]) -> str:
    lines = [f"{'kind':<10}{'inputs':>10}{'faults':>8}{'inputs with one':>17}"]
    for name, tally in tallies.items():
        lines.append(f"{name:<10}{tally.tried:>10}{len(tally.faults):>8}{tally.faults.total():>17}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
