"""`python -m experiments.report COMMAND`: of runs, of their rationales, of benchmark scores."""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.cli.messages import command
from experiments.report.audit.build import audit
from experiments.report.build import build
from experiments.report.data.runs import diff_runs, list_runs
from experiments.report.policies.rounds import write_rounds
from experiments.report.policies.seeds import write_seeds
from experiments.scoring.commands import add_score_commands


@command()
def main(arguments: list[str] | None = None, program: str = "python -m experiments.report") -> None:
    """Parses the command line, and does what its subcommand is for."""
    parser = argparse.ArgumentParser(prog=program, description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    run, runs, data = (argparse.ArgumentParser(add_help=False) for _ in range(3))
    run.add_argument("run", type=Path, help="e.g. runs/pocket")
    runs.add_argument("runs", type=Path, nargs="+", help="e.g. runs/pocket runs/pocket_round2")
    data.add_argument("--data-root", type=Path, help="prepared data; else those of the runs")

    build_help = "make a report of an experiment's newest runs"
    making = commands.add_parser("build", help=build_help, parents=[run, data])
    making.set_defaults(act=lambda namespace: build(namespace.run, namespace.data_root))

    showing = commands.add_parser("show", help="print the newest report", parents=[run])
    showing.set_defaults(act=lambda namespace: show(namespace.run))

    audit_help = "make a page of every rationale"
    auditing = commands.add_parser("audit", help=audit_help, parents=[run, data])
    auditing.set_defaults(act=lambda namespace: audit(namespace.run, namespace.data_root))

    rounds_help = "compare rounds of EM with the first one"
    comparing = commands.add_parser("rounds", help=rounds_help, parents=[runs, data])
    comparing.set_defaults(act=lambda namespace: write_rounds(namespace.runs, namespace.data_root))

    seeds_help = "average runs that differ in their seeds"
    averaging = commands.add_parser("seeds", help=seeds_help, parents=[runs, data])
    averaging.set_defaults(act=lambda namespace: write_seeds(namespace.runs, namespace.data_root))

    listing = commands.add_parser("list", help="every run below a folder, the newest first")
    listing.add_argument("folder", type=Path, nargs="?", default=Path("runs"))
    listing.set_defaults(act=lambda namespace: print(list_runs(namespace.folder)))

    differing = commands.add_parser("diff", help="settings and metrics of two runs")
    differing.add_argument("left", type=Path, help="e.g. runs/pocket/trunk")
    differing.add_argument("right", type=Path, help="e.g. runs/pocket/embedder")
    differing.set_defaults(act=lambda namespace: print(diff_runs(namespace.left, namespace.right)))

    add_score_commands(commands)
    options = parser.parse_args(arguments)
    options.act(options)


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
