"""`python -m experiments.bench_peers`: gradient cache and search against those of other libraries.

Ours and sentence-transformers train the same encoder on the same tokenised batch with the same
micro-batches and both directions; only loss and cache differ. Search stands against faiss. Needs
both libraries, in an environment of its own (`make bench-peers` makes one), and prepared data for
the encoder.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from experiments.bench.line import Line, compare, heading, write_results
from experiments.cli.messages import command
from mmemb.losses.ids import PairIds
from mmemb.losses.infonce import contrastive_loss
from mmemb.losses.terms import combine
from mmemb.retrieval.ranking import search
from mmemb.training.gradient_cache import GradientCache, embed_cached


def bench_cached_loss(encoder: Path, rows: int = 256, size: int = 64, kept: float = 0.0) -> Line:
    """Compares one backward pass through encoder, loss and cache with the other library's.

    Args:
        encoder: folder of a BERT-like model.
        rows: pairs of the batch.
        size: of a micro-batch, for both.
        kept: GiB of graphs that ours may retain; the peer has no such setting.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import (
        CachedMultipleNegativesRankingLoss,
    )

    model = SentenceTransformer(str(encoder), device="cpu").train()
    sides = [
        model.preprocess([f"{words} {n}" for n in range(rows)])
        for words in ("the flag of the country whose capital is city", "the flag of country number")
    ]

    peer_loss = CachedMultipleNegativesRankingLoss(
        model, mini_batch_size=size, directions=("query_to_doc", "doc_to_query")
    )

    row_B, cache = torch.arange(rows), GradientCache(micro_batch_size=size, retained_gib=kept)
    ids = PairIds(row_B, row_B, row_B[:, None])

    def embed(chosen: Any) -> tuple[torch.Tensor, ...]:
        # Micro-batches are runs of rows, so a slice copies nothing.
        cut = slice(chosen[0], chosen[-1] + 1)
        outputs = [
            model({k: v[cut] if torch.is_tensor(v) else v for k, v in side.items()})
            for side in sides
        ]
        return tuple(functional.normalize(x["sentence_embedding"], dim=1) for x in outputs)

    def ours() -> None:
        model.zero_grad()
        vectors = embed_cached(embed, [1] * rows, cache, model.parameters)
        combine(contrastive_loss(*vectors, ids, temperature=0.05)).backward()

    def peer() -> None:
        model.zero_grad()
        peer_loss([dict(side) for side in sides], None).backward()

    name = f"cached step, {rows} in {size}s" + (f", {kept:g} GiB kept" if kept else "")
    return compare(name, ours, peer, "sentence-transformers cached loss", bar=1.0)


def bench_search(queries: int = 1000, candidates: int = 1_000_000, dim: int = 512) -> Line:
    """Compares the ten best of a million, exact and with ties in order, with faiss's flat index."""
    import faiss

    torch.manual_seed(0)
    query_QD, candidate_ND = (
        functional.normalize(torch.randn(rows, dim), dim=1) for rows in (queries, candidates)
    )

    # The flat index is exact, as our search is.
    index = faiss.IndexFlatIP(dim)
    index.add(candidate_ND.numpy())

    name = f"10 best of {candidates:,}, {queries:,} queries"
    return compare(
        name,
        lambda: search(query_QD, candidate_ND, 10),
        lambda: index.search(query_QD.numpy(), 10),
        "faiss flat inner product",
        bar=1.0,
    )


@command()
def main(
    arguments: Sequence[str] | None = None, program: str = "python -m experiments.bench_peers"
) -> None:
    """Measures and writes `benchmarks/peers.json`."""
    parser = argparse.ArgumentParser(prog=program, description=__doc__)
    parser.add_argument("--encoder", type=Path, default=Path("data/pocket/models/minilm"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/peers.json"))
    options = parser.parse_args(arguments)

    # Before the search, which takes long, a missing library ends the command.
    try:
        import faiss  # noqa: F401
        import sentence_transformers  # noqa: F401
    except ImportError as error:
        sys.exit(f"error: {error.name} is not installed here; `make bench-peers` does it.")

    print(heading())

    lines = [bench_search()]
    print(lines[0], flush=True)
    for kept in (0.0, 1.0):
        lines.append(bench_cached_loss(options.encoder, kept=kept))
        print(lines[-1], flush=True)

    write_results(options.out, lines, ("sentence-transformers", "faiss-cpu"))
