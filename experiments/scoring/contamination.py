"""`report contamination TRAIN TEST...`: test queries and candidates that were trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor
from tqdm import tqdm

from datamodules.data_roots import CANDIDATES, QUERIES, roots_below
from datamodules.samples import Row, SampleReader, rows_of
from experiments.scoring.near_duplicates import looks, most_alike, nearest, text_key
from experiments.tables import Table
from mmemb.backbones import Backbone, load_backbone
from mmemb.records.inputs import Media, Side
from mmemb.storage.files import write_atomically
from mmemb.storage.json_files import write_json
from mmemb.storage.manifests import MANIFEST
from mmemb.storage.shard_index import ShardIndex

NEAR_PICTURE = 0.02
"""Root mean square difference of two 16 x 16 thumbnails, colours from 0 to 1: another compression
of one picture stays below, two drawings of one thing lie far above."""

NEAR_VECTOR = 0.98
"""Cosine of two queries."""

_BATCH = 64
KINDS = ("same text", "same picture", "near picture", "near vector")


@final
@dataclass
class Collected:
    """Items, as far as they are compared.

    Attributes:
        keys: of the samples, with their folder's root.
        tasks: the line of the table that counts them.
        texts: hash of the query's text, "" of none.
        digests: of their pictures.
        owners: sample of each picture in `looks`.
        looks: of every picture.
        vectors: of every query, if there is an embedder.
    """

    keys: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    digests: list[tuple[str, ...]] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    looks: list[Tensor] = field(default_factory=list)
    vectors: list[Tensor] = field(default_factory=list)


def contamination(
    train: Path, tests: Sequence[Path], out: Path | None = None, embedder: Path | None = None
) -> str:
    """Returns a table by task, and examples.

    Args:
        train: data root whose `pairs/` were trained on.
        tests: data roots, or folders of such, whose `queries/` and `candidates/` are asked about.
        out: a folder for `contamination.{json,md}`.
        embedder: a saved backbone, for near vectors.
    """
    # Vectors find reworded questions; they cost a pass over the queries of both sides, so they
    # are optional.
    backbone = load_backbone(str(embedder)) if embedder else None

    folders = sorted(path.parent for path in (train / "pairs").rglob(MANIFEST))
    if not folders:
        raise FileNotFoundError(f"{train}/pairs holds no shards: name a data root with pairs.")
    trained = collect(folders, train, pair_items, backbone)

    roots = [root for folder in tests for root in roots_below(folder)]
    tested = collect([root / QUERIES for root in roots], Path(), query_items, backbone)
    if not tested.keys:
        raise ValueError(f"{', '.join(map(str, tests))}: no query of split test.")

    # Candidates join the same collection, so that one pass compares both.
    tested = collect([root / CANDIDATES for root in roots], Path(), candidate_items, None, tested)
    copies = compare(tested, trained)
    text = _page(tested, copies, len(trained.keys), embedder)

    if out is not None:
        write_atomically(out / "contamination.md", (text + "\n").encode())
        write_json(out / "contamination.json", _data(tested, trained, copies))
    return text


Copies = dict[str, dict[int, tuple[int, float]]]
"""Kind -> test query -> train pair and how near it is."""


def compare(tested: Collected, trained: Collected) -> Copies:
    """Finds every kind of copy; of several the nearest."""
    # From the end, so that the first pair with a text or picture stays in the table.
    by_text = {text: n for n, text in reversed(list(enumerate(trained.texts))) if text}
    by_digest = {d: n for n, ds in reversed(list(enumerate(trained.digests))) for d in ds}
    copies: Copies = {kind: {} for kind in KINDS}

    for n, (text, digests) in enumerate(zip(tested.texts, tested.digests, strict=True)):
        if text in by_text:
            copies["same text"][n] = by_text[text], 0.0
        if shared := [digest for digest in digests if digest in by_digest]:
            copies["same picture"][n] = by_digest[shared[0]], 0.0

    # Looks find copies that were compressed anew, whose bytes differ.
    if tested.looks and trained.looks:
        distance_N, row_N = nearest(torch.stack(tested.looks), torch.stack(trained.looks))
        for owner, distance, row in zip(tested.owners, distance_N.tolist(), row_N, strict=True):
            if distance <= NEAR_PICTURE:
                copies["near picture"].setdefault(owner, (trained.owners[int(row)], distance))

    if tested.vectors and trained.vectors:
        cosine_N, row_N = most_alike(torch.cat(tested.vectors), torch.cat(trained.vectors))
        for n, (cosine, row) in enumerate(zip(cosine_N.tolist(), row_N.tolist(), strict=True)):
            if cosine >= NEAR_VECTOR:
                copies["near vector"][n] = row, cosine
    return copies


Item = tuple[str, Side, tuple[Media, ...]]
"""Line of the table, the side that is embedded and whose text counts, pictures."""


def pair_items(row: Row, reader: SampleReader) -> Item:
    """Returns a training pair: its query, and the pictures of both sides."""
    pair = reader.pair(row)
    return pair.task, pair.query, (*pair.query.media, *pair.target.media)


def query_items(row: Row, reader: SampleReader) -> Item | None:
    """Returns a test query; None for a query of another split."""
    if row.meta["split"] != "test":
        return None
    side = reader.query_side(row)
    return row.meta["task"], side, side.media


def candidate_items(row: Row, reader: SampleReader) -> Item | None:
    """Returns the pictures of a candidate; a label is no copy of anything."""
    side = reader.candidate(row).side
    return (f"{row.meta['gallery']} (candidates)", Side(""), side.media) if side.media else None


def collect(
    folders: Iterable[Path],
    base: Path,
    items: Callable[[Row, SampleReader], Item | None],
    backbone: Backbone | None,
    collection: Collected | None = None,
) -> Collected:
    """Reads folders of shards; pictures are decoded one by one, and only their looks are kept."""
    collection, reader, waiting = collection or Collected(), SampleReader(), list[Side]()
    for folder in folders:
        for row in tqdm(rows_of(ShardIndex.open(folder)), desc=str(folder), disable=None):
            item = items(row, reader)
            if item is None:
                continue

            _add(collection, row, base, *item)
            waiting += [item[1]] if backbone is not None else []
            if backbone is not None and len(waiting) == _BATCH:
                collection.vectors.append(_embedded(backbone, waiting))
                waiting = []

    if backbone is not None and waiting:
        collection.vectors.append(_embedded(backbone, waiting))
    return collection


@torch.inference_mode()
def _embedded(backbone: Backbone, sides: Sequence[Side]) -> Tensor:
    return backbone(sides).float().cpu()


def _add(
    collection: Collected, row: Row, base: Path, line: str, side: Side, media: Iterable[Media]
) -> None:
    folder, number = row.index.folder, len(collection.keys)
    place = folder.relative_to(base) if folder.is_relative_to(base) else folder
    collection.keys.append(f"{place}/{row.entry.key}")
    collection.tasks.append(line)

    # Of a candidate the text is empty: a label is no copy of anything.
    collection.texts.append(text_key(side.text))
    collection.digests.append(tuple(m.digest for m in media))

    for m in media:
        if m.pixels is not None:
            collection.owners.append(number)
            collection.looks.append(looks(m.pixels))


def _page(tested: Collected, copies: Copies, num_pairs: int, embedder: Path | None) -> str:
    lines = []
    for task in sorted(set(tested.tasks)):
        mine = {n for n, name in enumerate(tested.tasks) if name == task}
        counts = [len(mine & set(copies[kind])) for kind in KINDS]

        # One item may be found in several ways, and counts once.
        touched = set().union(*(mine & set(copies[kind]) for kind in KINDS))

        shown = [str(count) for count in counts]
        shown[-1] = shown[-1] if embedder else "-"
        lines.append([task, str(len(mine)), *shown, f"{100 * len(touched) / len(mine):.1f} %"])

    table = Table(("task", "items", *KINDS, "any"), lines).markdown()
    note = (
        f"Against {num_pairs:,} training pairs: their queries' texts, the pictures of both sides. "
        "Same text: equal but for case and spaces; a question about another picture counts, too. "
        f"Near picture: thumbnails that differ by at most {NEAR_PICTURE}; crops and mirror images "
        f"are not found. Near vector: a cosine of queries of at least {NEAR_VECTOR}, which says as "
        "much about the embedder as about the data."
    )
    return f"{table}\n\n{note}"


def _data(tested: Collected, trained: Collected, copies: Copies) -> Mapping[str, Any]:
    return {
        kind: [
            {"query": tested.keys[n], "pair": trained.keys[row], "value": round(value, 5)}
            for n, (row, value) in sorted(pairs.items())
        ]
        for kind, pairs in copies.items()
    } | {"thresholds": {"near picture": NEAR_PICTURE, "near vector": NEAR_VECTOR}}
