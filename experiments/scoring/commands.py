"""The subcommands of `report` about benchmarks: their scores, and whether they were trained on."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from experiments.cli.allow_class import add_allow_class
from experiments.cli.input_files import find_input
from experiments.scoring.compare import compare, headline
from experiments.scoring.contamination import contamination
from experiments.scoring.published import table
from experiments.scoring.submission import submission
from experiments.scoring.verify import verify
from mmemb.benchmarks.mmeb_v2 import TASKS
from mmemb.benchmarks.score_files import read_scores
from mmemb.records.schema import SchemaError, parse_json
from mmemb.storage.allowed_classes import allowing_classes
from mmemb.storage.files import write_atomically

_MODEL = "FOLDER of score files, or NAME=FOLDER,FOLDER... with a folder for each seed"


def add_score_commands(commands: Any) -> None:
    """Adds them to the parser of `report`."""
    showing = commands.add_parser("headline", help="means of a benchmark, or what is missing")
    showing.add_argument("scores", type=Path, help="folder of score files")
    showing.set_defaults(act=lambda options: print(headline(options.scores)))

    comparing = commands.add_parser("compare", help="is one model better? paired intervals")
    comparing.add_argument("scores", nargs="+", help=_MODEL)
    comparing.set_defaults(act=lambda options: print(compare(options.scores)))

    verifying = commands.add_parser("verify", help="scores against those that were promised")
    verifying.add_argument("scores", help=_MODEL)
    verifying.add_argument("--expected", required=True, help="e.g. pocket/expected.json")
    verifying.set_defaults(act=_verify)

    tabling = commands.add_parser("table", help="models side by side, for a paper")
    tabling.add_argument("scores", nargs="+", help=_MODEL)
    tabling.add_argument("--baselines", type=Path, help="folder with a folder for each model")
    tabling.add_argument("--format", choices=("latex", "md", "csv"), default="md")
    tabling.set_defaults(
        act=lambda options: print(table(options.scores, options.baselines, options.format))
    )

    handing = commands.add_parser("submission", help="the JSON file that a leaderboard takes")
    handing.add_argument("scores", type=Path, help="folder of score files, all 78 of them")
    handing.add_argument("--metadata", type=_metadata, default={}, help="JSON: model_name, ...")
    handing.add_argument("--out", type=Path, required=True, help="file to write")
    handing.set_defaults(act=_submit)

    looking = commands.add_parser("contamination", help="test queries that were trained on")
    looking.add_argument("train", type=Path, help="data root with pairs/")
    looking.add_argument("tests", type=Path, nargs="+", help="data roots, or folders of such")
    looking.add_argument("--out", type=Path, help="folder for contamination.{json,md}")
    looking.add_argument("--embedder", type=Path, help="a saved backbone, for near vectors")
    add_allow_class(looking)
    looking.set_defaults(act=_contamination)


def _contamination(options: argparse.Namespace) -> None:
    with allowing_classes(options.allow_class):
        print(contamination(options.train, options.tests, options.out, options.embedder))


def _metadata(text: str) -> dict[str, Any]:
    try:
        return parse_json(text, dict[str, Any], "--metadata")
    except SchemaError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _submit(options: argparse.Namespace) -> None:
    # The leaderboard's file groups tasks by modality.
    modality_of = {task.name: task.modality for task in TASKS}
    data = submission(read_scores(options.scores), modality_of, options.metadata)

    write_atomically(options.out, json.dumps(data, indent=4, allow_nan=False).encode())
    print(options.out)


def _verify(options: argparse.Namespace) -> None:
    """Prints the comparison, and ends with status 1 if a score lies outside."""
    text, good = verify(options.scores, find_input(options.expected))
    print(text)
    if not good:
        sys.exit(1)
