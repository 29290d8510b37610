"""`python -m experiments.invariance --config FILE`: tests if scores depend on how a model is run.

Evaluates with other batch sizes, reading processes and ranks, each in a process of its own through
the usual command, and prints by how much vectors and rankings change. A batch of one has no
padding, so the effect of padding is measured too; `--variant NAME='ARGS'` adds another setting,
such as the padding side of a generative backbone.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import reduce
from pathlib import Path

from datamodules.data_roots import read_benchmark
from experiments.checks.batch_invariance import Change, change_between
from experiments.cli.messages import command
from experiments.rooms import SAFE_PATH
from experiments.scoring.embeddings import read_embeddings
from experiments.scoring.score import own_lists
from experiments.tables import Table
from mmemb.benchmarks.score_files import read_scores
from mmemb.records.file_names import file_name
from mmemb.storage.files import write_atomically
from mmemb.storage.json_files import write_json

VARIANTS = {
    "batches of 1": "--data.batch_size 1",
    "batches of 7": "--data.batch_size 7",
    "batches of 256": "--data.batch_size 256",
    "two reading processes": "--data.num_workers 2",
    "two ranks": "--trainer.devices 2 --trainer.strategy ddp --trainer.accelerator cpu",
}

BASE = "as configured"


@command()
def main(
    arguments: Sequence[str] | None = None, program: str = "python -m experiments.invariance"
) -> None:
    """Runs every variant; ends with status 1 if a ranking changed beyond noise."""
    options, rest = _parse(arguments, program)
    variants = VARIANTS | dict(_named(text) for text in options.variant)

    _evaluate(options, rest, BASE, "")
    changes = {}
    for name, more in variants.items():
        _evaluate(options, rest, name, more)
        changes[name] = compare(
            options.data_root, options.out / _slug(BASE), options.out / _slug(name)
        )
        print(f"{name}: {changes[name]}", flush=True)

    text = certificate(changes)
    write_atomically(options.out / "invariance.md", (text + "\n").encode())
    write_json(options.out / "invariance.json", {n: asdict(c) for n, c in changes.items()})
    print(f"\n{text}\n\n{options.out}/invariance.md")

    if any(change.flips for change in changes.values()):
        sys.exit(1)


def compare(data_root: Path, first: Path, second: Path) -> Change:
    """Returns the change between two folders of embeddings, over all tasks that `first` holds."""
    changes = []
    scored = read_scores(first)
    for root in read_benchmark(data_root):
        for task in root.tasks:
            # A skipped task of a partial run has no vectors.
            if task.name not in scored:
                continue

            base = read_embeddings(first / root.path, task.name)
            other = read_embeddings(second / root.path, task.name)

            # Rows are compared by number, so both must have the names in one order.
            if base[2] != other[2]:
                raise ValueError(f"{second}: {task.name} has its candidates in another order.")

            queries = [query for query in root.queries if query.task == task.name]
            lists = own_lists(root, queries, base[2])
            changes.append(change_between(base[:2], other[:2], lists))
    return reduce(Change.__add__, changes)


def certificate(changes: Mapping[str, Change]) -> str:
    """Returns the table of the changes and a verdict in one sentence."""
    lines = [
        [name, f"{c.largest:.1e}", str(c.flips), str(c.near_flips), f"{c.pairs:,}"]
        for name, c in changes.items()
    ]

    headings = ("variant", "largest change", "rank flips", "flips nearer than 1e-5", "pairs")
    flips = sum(change.flips for change in changes.values())

    verdict = (
        "No ranking changes where scores are further apart than 1e-5."
        if not flips
        else f"{flips} pairs of candidates change places beyond the noise of fp32: scores of this "
        "model depend on how it is run."
    )

    return f"{Table(headings, lines).markdown()}\n\n{verdict}"


def _evaluate(options: argparse.Namespace, rest: Sequence[str], name: str, more: str) -> None:
    """Runs `test` with the arguments `more`; scores and vectors go to the variant's folder."""
    folder = options.out / _slug(name)
    # Below `mmemb` as `mmemb test`, which finds classes of the working folder last.
    program = ["experiments" if SAFE_PATH in os.environ else "experiments.run", "test"]
    words = [sys.executable, "-m", *program, "--config", str(options.config)]
    words += ["--data_root", str(options.data_root), *rest, *shlex.split(more)]
    words += ["--trainer.callbacks.init_args.folder", str(folder)]

    # Vectors are kept, since scores alone hide changes that flip no hit.
    words += ["--trainer.callbacks.init_args.embeddings", "true"]

    start = time.monotonic()
    print(f"{name} ...", end=" ", flush=True)

    # Each variant has a process of its own: threads and caches of one must not change another.
    process = subprocess.run(words, capture_output=True, text=True, check=False)
    if process.returncode:
        raise ValueError(f"{shlex.join(words)} failed:\n{process.stderr[-2000:]}")

    print(f"{time.monotonic() - start:.0f} s", flush=True)


def _slug(name: str) -> str:
    return file_name(name.replace(" ", "-"))


def _named(text: str) -> tuple[str, str]:
    name, equals, more = text.partition("=")
    if not equals:
        raise SystemExit(f"error: --variant {text!r}: expected NAME='ARGUMENTS'.")
    return name, more


def _parse(arguments: Sequence[str] | None, program: str) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog=program,
        description=__doc__,
        epilog="Other arguments go to experiments.run.",
    )

    parser.add_argument("--config", type=Path, required=True, help="e.g. mmeb_v2/evaluate.yaml")
    parser.add_argument("--data_root", type=Path, default=Path("data/pocket"))
    parser.add_argument("--out", type=Path, default=Path("runs/invariance"))
    parser.add_argument("--variant", action="append", default=[], help="NAME='ARGUMENTS'")
    return parser.parse_known_args(arguments)
