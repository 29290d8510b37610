"""`python -m experiments.check backbone --config FILE`: does a backbone keep its promises?

FILE is that of a stage that trains an embedder, e.g. experiments/configs/pocket/trunk.yaml, with a
further --config for a backbone of your own. Two ranks are tried by a training:
`experiments.run fit ... --trainer.devices 2 --trainer.strategy ddp`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from experiments.cli.allow_class import add_allow_class
from experiments.cli.messages import command
from mmemb.storage.allowed_classes import allowing_classes


@command()
def main(
    arguments: Sequence[str] | None = None, program: str = "python -m experiments.check"
) -> None:
    """Prints a line per promise; the exit status is 1 if one is broken."""
    parser = argparse.ArgumentParser(prog=program, description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    backbone = commands.add_parser("backbone", help="the contract of mmemb.backbones.Backbone")
    backbone.add_argument("--config", action="append", required=True, help="as for experiments.run")
    add_allow_class(backbone)

    options, rest = parser.parse_known_args(arguments)
    configs = [word for path in options.config for word in ("--config", path)]

    with allowing_classes(options.allow_class):
        holds = check_backbone(["fit", *configs, *rest])
    if not holds:
        sys.exit(
            "error: the backbone breaks a promise; mmemb/backbones/base.py says what is meant."
        )


def check_backbone(arguments: list[str]) -> bool:
    """Builds the backbone of a `fit` command line and checks it; tells whether all holds."""
    from experiments.cli.experiment_cli import build
    from mmemb.backbones.contract import check_contract

    module, _ = build(arguments)
    backbone = getattr(module, "backbone", None)
    if backbone is None:
        raise ValueError(
            f"{type(module).__name__} has no backbone: name the file of a stage that trains an "
            "embedder, such as experiments/configs/pocket/trunk.yaml."
        )

    print(f"{type(backbone).__name__}: reads {', '.join(sorted(backbone.modalities))}")
    findings = []

    for finding in check_contract(backbone):
        findings.append(finding)
        print(f"{'holds ' if finding.holds else 'BROKEN'}  {finding.promise}: {finding.seen}")

    return all(finding.holds for finding in findings)
