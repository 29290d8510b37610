"""`python -m experiments.search --model DIR --index SHARDS --query "text" [--image FILE]`.

Searches a folder of candidates exactly. DIR is a saved AdaptiveEmbedder (a gate's run has one) or a
backbone; SHARDS the `candidates` of a data root, embedded once.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final, get_args

from torch import Tensor

import mmemb
from experiments.cli.allow_class import add_allow_class
from experiments.cli.messages import command
from experiments.cli.permissions import add_permissions
from experiments.search.index import Candidates, load_candidates, model_identity
from mmemb.gate.adaptive_embedder import AdaptiveEmbedder
from mmemb.gate.budget import Unit
from mmemb.gate.loading import find_model
from mmemb.media import side
from mmemb.media.inputs import is_file_name
from mmemb.records.inputs import Side
from mmemb.records.rationales import Rationale
from mmemb.retrieval.exact_search import exact_top
from mmemb.retrieval.ranking import TOLERANCE
from mmemb.storage.allowed_classes import allowing_classes
from mmemb.storage.folder_kinds import FolderKind, check_kind
from mmemb.storage.hub import model_folder

AUTO = "auto"


@final
@dataclass(frozen=True, slots=True)
class Answer:
    """Result of the search for a query.

    Attributes:
        depth: at which it was embedded.
        written: the rationale that it was embedded with, if it reasoned.
        hits: score, gallery and name, best first.
    """

    depth: str
    written: Rationale | None
    hits: tuple[tuple[float, str, str], ...]

    def lines(self) -> list[str]:
        """Returns the lines that the command prints."""
        lines = [f"depth: {self.depth}"]

        if self.written is not None:
            lines.append(f"written ({self.written.num_tokens} tokens): {self.written.text}")

        width = max(len(f"{gallery}/{name}") for _, gallery, name in self.hits)
        return lines + [
            f"{rank:>4}  {score:7.4f}  {f'{gallery}/{name}':<{width}}".rstrip()
            for rank, (score, gallery, name) in enumerate(self.hits, start=1)
        ]


@command()
def main(
    arguments: Sequence[str] | None = None, program: str = "python -m experiments.search"
) -> None:
    """Prints rank, score and name of the best candidates."""
    options = _parse(arguments, program)
    with allowing_classes(options.allow_class):
        print("\n".join(_answer(options).lines()))


def search_candidates(
    embedder: AdaptiveEmbedder,
    candidates: Candidates,
    side: Side,
    top: int,
    depth: str = AUTO,
    budget: float | None = None,
    unit: Unit = "invocation",
) -> Answer:
    """Embeds a query, at the depth that the gate chooses or at a given one, and searches.

    Args:
        embedder: the inference path.
        candidates: what is searched, embedded by the same backbone.
        side: the query.
        top: how many candidates are named.
        depth: `auto`, `direct`, or a depth of the embedder.
        budget: of the gate, with `auto`.
        unit: what the budget counts.

    Raises:
        ValueError: there is no such depth.
    """
    forced = None if depth == AUTO else depth

    # The gate's state may hold the scores of the gallery, so it gets the vectors that are
    # searched.
    encoded = embedder.encode([side], budget, unit, depth=forced, gallery=candidates.vectors_ND)

    hits = nearest(encoded.vectors_BD, candidates, top)
    return Answer(encoded.depths[0], encoded.rationales[0], hits)


def nearest(
    query_1D: Tensor, candidates: Candidates, top: int
) -> tuple[tuple[float, str, str], ...]:
    """Returns score, gallery and name of the best candidates."""
    k = min(top, len(candidates.names))

    if not query_1D.isfinite().all():
        raise ValueError("The query's vector is not finite: the model's weights are broken.")

    scores, rows = exact_top(query_1D.float(), candidates.vectors_ND, k, TOLERANCE)
    pairs = zip(scores[0].tolist(), rows[0].tolist(), strict=True)
    return tuple((score, *candidates.names[row]) for score, row in pairs)


def _answer(options: argparse.Namespace) -> Answer:
    if options.cache is not None:
        check_kind(options.cache, "embedded candidates", FolderKind.INDEX)

    side = _side(options)
    if options.budget is not None and options.depth != AUTO:
        raise ValueError("--budget is for --depth auto: a forced depth asks no gate.")

    folder = model_folder(options.model)
    embedder = mmemb.load(
        folder,
        servers=dict(options.server),
        models=dict(options.allow_model),
        device=options.device,
    )
    # A wrong query is refused before candidates are embedded for it.
    embedder.check_depth(None if options.depth == AUTO else options.depth)
    embedder.check_budget(options.budget, options.unit)

    # Vectors are kept under the model's content, so another model never reads them.
    identity = model_identity(find_model(folder)[1])
    everything = load_candidates(
        embedder.backbone, identity, options.index, options.cache, options.features
    )
    return search_candidates(
        embedder,
        everything.of_gallery(options.gallery),
        side,
        options.top,
        options.depth,
        options.budget,
        options.unit,
    )


def _side(options: argparse.Namespace) -> Side:
    if not options.query and not options.image:
        raise ValueError("There is nothing to search for: give --query, --image or both.")
    # The letters of a name would be searched, and any candidate be near them.
    if is_file_name(options.query):
        raise ValueError(
            f"--query {options.query} is the name of a file, and a query is a text: search by the "
            f"picture with --image {options.query}, or write the text in other words."
        )
    media = tuple(media for path in options.image for media in side(path).media)
    return Side(options.query, options.instruction, media)


def _parse(arguments: Sequence[str] | None, program: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=program, description=__doc__)
    parser.add_argument(
        "--model", required=True, help="e.g. runs/pocket/gate, a release, or org/name of a hub"
    )
    parser.add_argument("--index", type=Path, required=True, help="a data root, e.g. data/pocket")

    parser.add_argument("--query", default="", help="text")
    parser.add_argument(
        "--image", type=Path, action="append", default=[], help="a file of a picture or clip"
    )
    parser.add_argument("--instruction", default="", help="as the model was trained with")
    parser.add_argument("--gallery", help="search only this one; by default all")
    parser.add_argument("--top", type=_positive, default=10, help="how many are named")

    # What the gate decides, and within which bounds.
    parser.add_argument("--depth", default=AUTO, help="auto (the gate decides), direct, full, ...")
    parser.add_argument("--budget", type=float, help="what the gate may spend on average")
    parser.add_argument("--unit", choices=get_args(Unit), default="invocation", help="of --budget")

    parser.add_argument("--cache", type=Path, help="by default `search` beside the shards")
    parser.add_argument("--features", type=Path, help="cached features of the candidates")

    add_permissions(parser)
    add_allow_class(parser)
    parser.add_argument("--device", default="cpu", help="of backbone and gate, e.g. cuda")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected 1 or more")
    return number


if __name__ == "__main__":
    main()
