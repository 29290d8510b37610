"""`python -m experiments.report COMMAND`: of runs, of their rationales, of benchmark scores."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from experiments.report.audit.build import audit
from experiments.report.build import build
from experiments.report.data.runs import diff_runs, list_runs
from experiments.report.policies.rounds import write_rounds
from experiments.report.policies.seeds import write_seeds
from experiments.scoring.commands import (
    SCORE_COMMANDS,
    add_score_commands,
    run_score_command,
)
from mmemb.storage.signals import exit_on_signals


@exit_on_signals()
def main(arguments: list[str] | None = None) -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.report", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    making = commands.add_parser("build", help="make a report of an experiment's newest runs")
    making.add_argument("run", type=Path, help="e.g. runs/pocket")
    making.add_argument("--data-root", default="data/pocket", help="prepared data")

    showing = commands.add_parser("show", help="print the newest report")
    showing.add_argument("run", type=Path, help="e.g. runs/pocket")

    auditing = commands.add_parser("audit", help="make a page of every rationale")
    auditing.add_argument("run", type=Path, help="e.g. runs/pocket")
    auditing.add_argument("--data-root", default="data/pocket", help="prepared data")

    comparing = commands.add_parser("rounds", help="compare rounds of EM with the first one")
    comparing.add_argument("runs", type=Path, nargs="+", help="e.g. runs/pocket runs/pocket_round2")
    comparing.add_argument("--data-root", default="data/pocket", help="prepared data")

    averaging = commands.add_parser("seeds", help="average runs that differ in their seeds")
    averaging.add_argument("runs", type=Path, nargs="+", help="e.g. runs/pocket runs/pocket_seed0")
    averaging.add_argument("--data-root", default="data/pocket", help="prepared data")

    listing = commands.add_parser("list", help="every run below a folder, the newest first")
    listing.add_argument("folder", type=Path, nargs="?", default=Path("runs"))

    differing = commands.add_parser("diff", help="settings and metrics of two runs")
    differing.add_argument("left", type=Path, help="e.g. runs/pocket/trunk")
    differing.add_argument("right", type=Path, help="e.g. runs/pocket/embedder")

    add_score_commands(commands)
    options = parser.parse_args(arguments)

    try:
        if options.command == "build":
            build(options.run, options.data_root)
        elif options.command == "audit":
            audit(options.run, options.data_root)
        elif options.command == "rounds":
            write_rounds(options.runs, Path(options.data_root))
        elif options.command == "seeds":
            write_seeds(options.runs, Path(options.data_root))
        elif options.command == "list":
            print(list_runs(options.folder))
        elif options.command == "diff":
            print(diff_runs(options.left, options.right))
        elif options.command in SCORE_COMMANDS:
            run_score_command(options)
        else:
            show(options.run)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


def show(run: Path) -> None:
    """Prints `report.md`."""
    path = run / "report.md"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: run the pipeline, or `python -m experiments.report build {run}`."
        )
    print(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
