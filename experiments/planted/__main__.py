"""`python -m experiments.planted`: what the method finds where the truth is known.

Three questions, without a model in between: which contrast finds the helpful rationales at one keep
rate; which estimator brings the gate how near its optimum, and how noisy its gradient is; how often
the cluster bootstrap's 95 % interval holds the truth. Writes planted.json, planted.md and
planted.png. Needs no data; about two minutes on two busy cores.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from experiments.cli.messages import command
from experiments.planted.figure import draw
from experiments.planted.page import page
from experiments.planted.study import measure, num_steps
from experiments.runs.origin import made_now
from mmemb.storage.files import write_atomically
from mmemb.storage.json_files import write_json


def study(pairs: int, seeds: int, samples: int) -> dict[str, Any]:
    """Measures all that the page and the figure show, as JSON data, and records its origin."""
    with tqdm(total=num_steps(seeds), desc="planted", unit="step") as bar:
        start = time.perf_counter()
        result = measure(pairs, seeds, samples, bar.update)
        seconds = time.perf_counter() - start

    origin = {"pairs": pairs, "seeds": seeds, "samples": samples, "seconds": seconds}
    return result | {"made": origin | made_now() | {"cores": os.cpu_count()}}


@command()
def main(
    arguments: Sequence[str] | None = None, program: str = "python -m experiments.planted"
) -> None:
    """Measures, writes the three files and prints the bars."""
    parser = argparse.ArgumentParser(
        prog=program,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    parser.add_argument("--pairs", type=int, default=2000, help="of a world (default: 2000)")
    parser.add_argument("--seeds", type=int, default=3, help="worlds of a setting (default: 3)")
    parser.add_argument(
        "--samples", type=int, default=800,
        help="of a coverage at 40 clusters, fewer at more (default: 800)",
    )  # fmt: skip

    parser.add_argument("--out", type=Path, default=Path("runs/planted"), help="folder to write")
    options = parser.parse_args(arguments)

    result = study(options.pairs, options.seeds, options.samples)
    write_atomically(options.out / "planted.png", draw(result))
    write_atomically(options.out / "planted.md", page(result).encode())
    write_json(options.out / "planted.json", result)

    for bar, missed in result["bars"].items():
        print(f"{'holds' if not missed else 'FAILS'}: {bar}", *missed, sep="\n    ")
    print(f"{options.out}/planted.md, planted.png, planted.json")


if __name__ == "__main__":
    main()
