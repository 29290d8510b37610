"""`python -m experiments.bench`: our parts against a peer or the limit, side by side in one run.

Both sides of a line run in turn, several times; the median and the ratio are printed, since a
machine's speed drifts and only ratios travel. Needs prepared data and, for the last lines, the
runs of the pocket pipeline.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from mmemb.records import GREEDY, Side


def compare(
    name: str, ours: Callable[[], Any], peer: Callable[[], Any], peer_name: str, runs: int = 5
) -> tuple[str, float, float, str]:
    """Median seconds of both, measured in turn after one warm-up of each."""
    ours(), peer()
    seconds: list[tuple[float, float]] = []
    for _ in range(runs):
        seconds.append((_seconds(ours), _seconds(peer)))
    mine, theirs = (statistics.median(column) for column in zip(*seconds, strict=True))
    return name, mine, theirs, peer_name


def _seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def bench_reading(root: Path) -> tuple[str, float, float, str]:
    """Pictures of the training pairs: read by offset and decode, against a plain WebDataset."""
    import webdataset as wds
    from PIL import Image

    from datamodules.samples import SampleReader, rows_of
    from mmemb.shards import ShardIndex

    index = ShardIndex.open(root / "pairs/plain", verify=False)
    shard = index.shard_names[0]
    rows = [row for row in rows_of(index) if row.entry.shard == shard]
    reader = SampleReader()

    def ours() -> None:
        for row in rows:
            reader.pair(row)

    def peer() -> None:
        for sample in wds.WebDataset(str(index.folder / shard), shardshuffle=False):
            for name, data in sample.items():
                if name.endswith("webp"):
                    torch.frombuffer(
                        bytearray(Image.open(io.BytesIO(data)).convert("RGB").tobytes()),
                        dtype=torch.uint8,
                    )

    return compare(f"read and decode {len(rows)} pairs", ours, peer, "webdataset + Pillow")


def bench_ranking() -> tuple[str, float, float, str]:
    """Exact tie-aware ranks, against the same fp64 scores sorted whole."""
    from mmemb.ranking import rank_positives

    torch.manual_seed(0)
    query_QD = torch.nn.functional.normalize(torch.randn(2000, 384), dim=1)
    target_ND = torch.nn.functional.normalize(torch.randn(2000, 384), dim=1)
    positives = [[row] for row in range(2000)]
    return compare(
        "rank 2,000 queries in 2,000",
        lambda: rank_positives(query_QD, target_ND, positives),
        lambda: (query_QD.double() @ target_ND.double().T).argsort(1),
        "fp64 product + full sort",
    )


def bench_generation(root: Path, prompt: str) -> tuple[str, float, float, str]:
    """Greedy rationales with the shared few-shot prefix, against `generate` of transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from mmemb.rationales import LanguageModelWorker

    folder = str(root / "models/smollm2")
    worker = LanguageModelWorker(folder, prompt, batch_size=32, max_new_tokens=24)
    sides = [
        Side(text=f"the flag of the country whose capital is {name}")
        for name in ("Paris", "Rome", "Oslo", "Lima", "Cairo", "Tokyo", "Accra", "Quito")
    ] * 4
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    texts = [worker.prompt.render(tokenizer, side.text) for side in sides]

    def peer() -> None:
        inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.inference_mode():
            model.generate(**inputs, max_new_tokens=24, do_sample=False)

    seeds_BK = torch.full((len(sides), 1), GREEDY)
    return compare(
        "32 greedy rationales",
        lambda: worker.write(sides, seeds_BK),
        peer,
        "transformers generate, whole prompts",
        runs=3,
    )


def bench_gate(adaptive: Path) -> tuple[str, float, float, str]:
    """The gate's decision against the direct pass it rides on."""
    from mmemb.adaptive import AdaptiveEmbedder

    embedder = AdaptiveEmbedder.from_pretrained(adaptive)
    sides = [Side(text=f"the flag of country number {n}") for n in range(64)]
    keys = [side.digest for side in sides]
    with torch.inference_mode():
        # Any state of the right width costs the same; what it is made of is timed by gate-test.
        state_BS = torch.zeros(len(sides), embedder.head.settings()["state_dim"])
        return compare(
            "gate 64 queries",
            lambda: embedder.decide(state_BS, keys, None),
            lambda: embedder.backbone.encode(sides),
            "their direct embedding",
        )


def bench_training(trunk: Path) -> tuple[str, float, float, str]:
    """Forward and backward of 64 short texts, against a matrix product of as many FLOPs."""
    from mmemb.backbones import load_backbone

    backbone = load_backbone(str(trunk)).train()
    sides = [Side(text=f"the flag of the country whose capital is city {n}") for n in range(64)]
    weights = [p for p in backbone.parameters() if p.requires_grad and p.ndim == 2]
    tokens = 64 * 14
    flops = 6 * tokens * sum(weight.numel() for weight in weights)
    size = 1024
    times = max(1, round(flops / (2 * size**3)))
    left, right = torch.randn(size, size), torch.randn(size, size)

    def ours() -> None:
        backbone.zero_grad()
        backbone.encode(sides).sum().backward()

    def limit() -> None:
        for _ in range(times):
            left @ right

    return compare("train step, 64 texts", ours, limit, f"{flops / 1e9:.0f} GFLOP of products")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benches whose inputs exist."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bench", description=__doc__)
    parser.add_argument("--data-root", type=Path, default=Path("data/pocket"))
    parser.add_argument("--runs", type=Path, default=Path("runs/pocket"))
    options = parser.parse_args(arguments)
    prompt = str(Path(__file__).parent / "configs/pocket/few_shot.json")
    adaptive, trunk = options.runs / "gate/adaptive", options.runs / "trunk/backbone"
    benches: list[tuple[Path | None, Callable[[], tuple[str, float, float, str]]]] = [
        (options.data_root / "pairs/plain", lambda: bench_reading(options.data_root)),
        (None, bench_ranking),
        (options.data_root / "models/smollm2", lambda: bench_generation(options.data_root, prompt)),
        (adaptive, lambda: bench_gate(adaptive)),
        (trunk, lambda: bench_training(trunk)),
    ]
    print(f"{'what':<28}{'ours':>10}{'other':>10}{'ratio':>8}   other is")
    for needed, bench in benches:
        if needed is not None and not needed.exists():
            print(f"{needed} does not exist yet: run `make demo` first; left out")
            continue
        name, mine, theirs, peer = bench()
        row = f"{1000 * mine:>8.1f}ms{1000 * theirs:>8.1f}ms{mine / theirs:>8.2f}"
        print(f"{name:<28}{row}   {peer}", flush=True)


if __name__ == "__main__":
    main()
