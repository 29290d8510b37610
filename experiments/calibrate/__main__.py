"""`python -m experiments.calibrate --model DIR --queries FILE --out DIR`.

Fits the budgets of a gate again on queries of your own, without labels: which share of queries
reasons at a budget depends on the queries. DIR is the run of a gate or a saved AdaptiveEmbedder;
FILE holds a text on each line, or JSON lines (`text`, `image`, `video`, `instruction`), or is a
data root. Nothing is trained.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

import mmemb
from experiments.calibrate.calibrated_folder import check_place, write_calibrated
from experiments.calibrate.queries import read_queries
from experiments.calibrate.shares import FEW_QUERIES, BudgetShare, budget_shares, half_width
from experiments.cli.allow_class import add_allow_class
from experiments.cli.messages import command
from experiments.cli.permissions import add_permissions
from experiments.search.index import load_candidates, model_identity
from experiments.tables import Table, percent
from mmemb.gate.adaptive_embedder import AdaptiveEmbedder
from mmemb.gate.budget import Unit
from mmemb.gate.gate_scores import GateScores
from mmemb.gate.loading import find_model
from mmemb.media.inputs import Input
from mmemb.records.hashing import stable_hash
from mmemb.storage.allowed_classes import allowing_classes

BUDGETS = (0.1, 0.25, 0.5, 0.75)
"""Shares that are shown unless others are asked for."""

HEADINGS = ("budget", "price before", "price now", "share before", "share now", "held out")


@command()
def main(
    arguments: Sequence[str] | None = None, program: str = "python -m experiments.calibrate"
) -> None:
    """Calibrates, and prints what each budget buys before and after."""
    options = _parse(arguments, program)
    with allowing_classes(options.allow_class):
        _calibrate(options)


def _calibrate(options: argparse.Namespace) -> None:
    adaptive, backbone = find_model(options.model)
    if adaptive is None:
        raise ValueError(
            f"{options.model} has no gate, so it has no budgets: name a run of stage 4, such as "
            "runs/pocket/gate."
        )
    check_place(adaptive.path, options.out)
    budgets, unit = _budgets(options)

    queries = read_queries(options.queries, options.split, options.task, options.features)
    embedder = mmemb.load(
        options.model,
        servers=dict(options.server),
        models=dict(options.allow_model),
        device=options.device,
    )
    # A wrong budget, or one in a unit that was not measured, is refused before the long part.
    for budget in budgets:
        embedder.calibration.price(budget, unit)

    scores = embedder.gate_scores(
        queries,
        instruction=options.instruction,
        gallery=_gallery(options, embedder, backbone),
        batch_size=options.batch_size,
    )
    cost_A = _token_costs(options, embedder, queries)
    former = embedder.calibration
    new = scores.calibrate(cost_A, former.milliseconds)

    shares = budget_shares(scores, former, new, budgets, unit)
    table, own = _table(shares).markdown(), _own_will(embedder, scores)
    print(_about(options.queries, scores), table, own, sep="\n\n")

    # A card tells no machine's paths.
    name = Path(options.queries.name)
    card = "\n\n".join([_about(name, scores), table, own])
    kept = write_calibrated(adaptive.path, options.out, new, card)
    print(f"\n{options.out or adaptive.path}: calibrated; the former calibration is in {kept}.")


def _budgets(options: argparse.Namespace) -> tuple[Sequence[float], Unit]:
    if not options.budget and options.unit != "invocation":
        raise ValueError(f"--unit {options.unit} needs a --budget, such as --budget 20.")
    if options.written < 0:
        raise ValueError(f"--written is {options.written}: expected a number of queries, or 0.")
    return options.budget or BUDGETS, options.unit


def _gallery(
    options: argparse.Namespace, embedder: AdaptiveEmbedder, backbone: Path
) -> Tensor | None:
    """Vectors of the candidates, if the gate sees the scores of them."""
    if "scores" not in embedder.state:
        return None
    if options.index is None:
        raise ValueError(
            "This gate sees the scores of the candidates, so it needs them: give --index, a data "
            "root, and --gallery where it has several."
        )

    identity = model_identity(backbone)
    candidates = load_candidates(embedder.backbone, identity, options.index, None, options.features)
    return candidates.of_gallery(options.gallery).vectors_ND


def _token_costs(
    options: argparse.Namespace, embedder: AdaptiveEmbedder, queries: Sequence[Input]
) -> Tensor:
    """Tokens (A,) at each depth: those of the former calibration, or measured on a sample."""
    if not options.written:
        return embedder.calibration.mean_tokens()

    # By a hash of the place, so that neighbours of a sorted file are not all of the sample.
    order = sorted(range(len(queries)), key=lambda row: stable_hash("written", str(row)))
    sample = [queries[row] for row in sorted(order[: options.written])]

    means = [0.0]
    for depth in embedder.depths[1:]:
        encoded = embedder.encode(sample, depth=depth, instruction=options.instruction)
        tokens_R = encoded.tokens_B[encoded.depths_B > 0].double()
        if not len(tokens_R):
            raise ValueError(
                f"No rationale of depth {depth!r} was written about {len(sample)} queries, so its "
                "tokens cannot be measured: give a larger --written, or leave it out."
            )
        means.append(float(tokens_R.mean()))
    return torch.tensor(means, dtype=torch.float64)


def _about(name: Path, scores: GateScores) -> str:
    num, distinct = len(scores.keys), len(set(scores.keys))
    lines = [
        f"{scores.num_queries} queries of {name}; {num} of them can reason"
        + (f", {distinct} different ones" if distinct < num else "")
        + f". A share of so many is known to about {100 * half_width(distinct):.1f} points."
    ]
    if distinct < FEW_QUERIES:
        lines.append(
            f"Warning: these are few queries. Below {FEW_QUERIES} a budget may be missed by more "
            f"than {100 * half_width(FEW_QUERIES):.0f} points: give more if there are more."
        )
    return " ".join(lines)


def _own_will(embedder: AdaptiveEmbedder, scores: GateScores) -> str:
    """What no calibration changes: the gate's choice where reasoning costs nothing."""
    depths_C = embedder.calibration.decide(scores.logit_CA, scores.keys)
    share = percent(float((depths_C > 0).double().mean()))
    return f"Without a budget {share} of them reason; a larger budget buys no more."


def _table(shares: Sequence[BudgetShare]) -> Table:
    rows = [
        (
            f"{share.budget:g} {share.unit}",
            f"{share.former_price.multiplier:.4g}",
            f"{share.price.multiplier:.4g}",
            share.former_share.text(100, 1),
            f"{100 * share.share:.1f}",
            share.held_out.text(100, 1) if share.held_out else "-",
        )
        for share in shares
    ]
    return Table(HEADINGS, rows)


def _parse(arguments: Sequence[str] | None, program: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=program, description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="e.g. runs/pocket/gate")
    parser.add_argument("--queries", type=Path, required=True, help="a file, or a data root")

    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--out", type=Path, help="a new folder for the calibrated embedder")
    place.add_argument(
        "--in-place", action="store_true", help="calibrate the folder itself, if it is no run's"
    )

    parser.add_argument("--split", default="", help="of a data root, by default all")
    parser.add_argument(
        "--task", action="append", default=[], help="of a data root; may be repeated"
    )
    parser.add_argument("--instruction", default="", help="of queries that bring none")

    parser.add_argument(
        "--budget", type=float, action="append", default=[], help="shown; may be repeated"
    )
    parser.add_argument("--unit", choices=get_args(Unit), default="invocation", help="of --budget")
    parser.add_argument(
        "--written",
        type=int,
        default=0,
        metavar="N",
        help="measure tokens on rationales about N queries; by default as calibrated before",
    )

    parser.add_argument("--index", type=Path, help="candidates, for a gate that sees their scores")
    parser.add_argument("--gallery", help="of --index, by default all")
    parser.add_argument("--features", type=Path, help="cached features of a data root")
    parser.add_argument("--batch-size", type=int, default=32, help="queries embedded together")
    add_permissions(parser)
    add_allow_class(parser)
    parser.add_argument("--device", default="cpu", help="of backbone and gate, e.g. cuda")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
