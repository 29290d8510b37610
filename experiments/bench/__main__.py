"""`python -m experiments.bench`: our parts against a peer or the limit, side by side in one run.

Both sides of a line run in turn, several times; the median and the ratio are printed, since a
machine's speed drifts and only ratios travel. Needs prepared data and, for the last lines, the
runs of the pocket pipeline.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from experiments.bench import training, vlm
from experiments.bench.line import Line, compare, heading, write_results
from experiments.cli.messages import command
from mmemb.records.inputs import Side
from mmemb.records.rationales import GREEDY
from mmemb.storage.pretrained import load_pretrained
from mmemb.storage.run_folder import ExperimentFolder


def bench_reading(root: Path) -> Line:
    """Compares reading and decoding pictures of training pairs with a plain WebDataset."""
    import webdataset as wds
    from PIL import Image

    from datamodules.samples import SampleReader, rows_of
    from mmemb.storage.shard_index import ShardIndex

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
                    image = Image.open(io.BytesIO(data), formats=["WEBP"]).convert("RGB")
                    torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)

    return compare(f"read and decode {len(rows)} pairs", ours, peer, "webdataset + Pillow")


def bench_streaming(root: Path) -> Line:
    """Compares a checked stream of a tar without an index with a plain WebDataset."""
    import webdataset as wds

    from datamodules.archives import ArchiveLimits, read_tar
    from datamodules.tar_samples import ForeignMembers, samples_of

    path, limits = sorted((root / "pairs/plain").glob("*.tar"))[0], ArchiveLimits()

    def ours() -> int:
        with path.open("rb") as stream:
            members = read_tar(stream, str(path), limits)
            return sum(1 for _ in samples_of(members, str(path), limits, ForeignMembers()))

    def peer() -> int:
        return sum(1 for _ in wds.WebDataset(str(path), shardshuffle=False))

    return compare(f"stream {ours()} samples of a tar", ours, peer, "webdataset", runs=20, bar=1.02)


def bench_ranking() -> Line:
    """Compares exact tie-aware ranks with the same fp64 scores sorted whole."""
    from mmemb.retrieval.ranking import rank_positives

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


def bench_generation(root: Path, prompt: str) -> Line:
    """Compares greedy rationales behind a shared prefix with `generate` of transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from mmemb.rationales import LanguageModelWriter

    folder = str(root / "models/smollm2")
    writer = LanguageModelWriter(folder, prompt, batch_size=32, max_new_tokens=24)

    sides = [
        Side(text=f"the flag of the country whose capital is {name}")
        for name in ("Paris", "Rome", "Oslo", "Lima", "Cairo", "Tokyo", "Accra", "Quito")
    ] * 4

    model = load_pretrained(AutoModelForCausalLM, folder, dtype=torch.float32).eval()
    tokenizer = load_pretrained(AutoTokenizer, folder, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    texts = [writer.prompt.render(tokenizer, side.text) for side in sides]

    def peer() -> None:
        inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.inference_mode():
            model.generate(**inputs, max_new_tokens=24, do_sample=False)

    seeds_BK = torch.full((len(sides), 1), GREEDY)
    return compare(
        "32 greedy rationales",
        lambda: writer.write(sides, seeds_BK),
        peer,
        "transformers generate, whole prompts",
        runs=3,
    )


def bench_gate(adaptive: Path) -> Line:
    """Compares the gate's decision with the direct pass that it follows."""
    from mmemb.gate.adaptive_embedder import AdaptiveEmbedder

    embedder = AdaptiveEmbedder.from_pretrained(adaptive)
    sides = [Side(text=f"the flag of country number {n}") for n in range(64)]
    keys = [side.digest for side in sides]

    with torch.inference_mode():
        # Any state of the right width costs the same; what it is made of is timed by gate-test.
        state_BS = torch.zeros(len(sides), embedder.head.config()["state_dim"])
        return compare(
            "gate 64 queries",
            lambda: embedder.calibration.decide(embedder.logits(state_BS), keys),
            lambda: embedder.backbone.encode(sides),
            "their direct embedding",
        )


def bench_training(trunk: Path) -> Line:
    """Compares forward and backward of 64 short texts with a matrix product of as many FLOPs."""
    from mmemb.backbones import load_backbone

    backbone = load_backbone(str(trunk)).train()
    sides = [Side(text=f"the flag of the country whose capital is city {n}") for n in range(64)]

    # A weight costs 2 FLOPs a token in the forward pass and 4 in the backward one.
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


@command()
def main(
    arguments: Sequence[str] | None = None, program: str = "python -m experiments.bench"
) -> None:
    """Runs the benches whose inputs exist."""
    parser = argparse.ArgumentParser(prog=program, description=__doc__)
    parser.add_argument("--data-root", type=Path, default=Path("data/pocket"))
    parser.add_argument("--runs", type=Path, default=Path("runs/pocket"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results.json"))
    options = parser.parse_args(arguments)

    print(heading())

    lines = []
    for needed, bench in benches(options.data_root, options.runs):
        if absent := [path for path in needed if not path.exists()]:
            print(f"{absent[0]} does not exist yet: run `make demo` first; left out")
            continue

        lines.append(bench())
        print(lines[-1], flush=True)

    write_results(options.out, lines)


def benches(root: Path, runs: Path) -> list[tuple[tuple[Path, ...], Callable[[], Line]]]:
    """Returns the inputs that have to exist, and the bench that reads them."""
    prompt = str(Path(__file__).parents[1] / "configs/pocket/few_shot.json")

    experiment = ExperimentFolder(runs)
    adaptive, trunk = experiment.gate.adaptive.path, experiment.run("trunk").backbone
    features = experiment.features
    plain, model = root / "pairs/plain", root / "models/smollm2"

    return [
        ((), training.bench_loss_memory),  # first: memory that others freed would hide its peak
        ((), training.bench_loss_time),
        ((trunk,), lambda: training.bench_gradient_cache(trunk, 0.0)),
        ((trunk,), lambda: training.bench_gradient_cache(trunk, 0.5)),
        ((trunk,), lambda: training.bench_gradient_cache(trunk, 0.0, lora=True)),
        ((trunk,), lambda: training.bench_gradient_cache(trunk, 0.5, lora=True)),
        ((trunk,), lambda: training.bench_blocks(trunk, compiled=False)),
        ((trunk,), lambda: training.bench_blocks(trunk, compiled=True)),
        ((trunk, plain, features), lambda: training.bench_step(root, trunk, features)),
        ((plain,), lambda: training.bench_loader(root)),
        ((plain,), lambda: training.bench_resume(root)),
        ((plain,), lambda: training.bench_state(root)),
        ((plain,), lambda: bench_reading(root)),
        ((plain,), lambda: bench_streaming(root)),
        ((), training.bench_converter),
        ((), bench_ranking),
        ((model,), lambda: bench_generation(root, prompt)),
        ((adaptive,), lambda: bench_gate(adaptive)),
        ((trunk,), lambda: bench_training(trunk)),
        ((model,), lambda: vlm.bench_judge(model, 256)),
        ((model,), lambda: vlm.bench_judge(model, 1024)),
        ((model,), lambda: vlm.bench_one_pass(model)),
        ((model,), lambda: vlm.bench_decoding(model)),
        ((model,), lambda: vlm.bench_decision(model)),
    ]


if __name__ == "__main__":
    main()
