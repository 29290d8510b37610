"""`python -m experiments.bench_gpu`: training, memory, generation and judging on one GPU.

A Qwen3-VL of the 2B size with random weights is written to a temporary folder (4.3 GB; TMPDIR says
where), without a network, and measured: steps of the recipes `mmeb_v2/direct` and `embedder`, their
peak memory against what `experiments.plan` says, generation against `generate` of transformers,
and a judge's shared prefixes against whole prompts. What does not fit into the device's memory is
reported as such. Random weights cost what trained ones do.

Without a GPU: --device cpu --size tiny runs all of it on a tiny model, in seconds. Its figures say
that the command works, and nothing else.
"""

from __future__ import annotations

import argparse
import logging
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from datamodules.prepare.tiny_vlm.build import TAGS
from experiments.bench.gpu_model import (
    SIZES,
    Size,
    allocated,
    letters,
    peak_tflops,
    shown,
    synced,
    thought,
    write_model,
    write_pairs,
)
from experiments.bench.gpu_training import CASES, Trained, bench_training
from experiments.bench.line import Line, compare, heading
from experiments.cli.messages import command
from experiments.plan.memory import GIB
from experiments.runs.origin import made_now
from mmemb.records.inputs import Side
from mmemb.records.rationales import FULL
from mmemb.storage.json_files import write_json

RESULTS = Path("benchmarks/results_gpu.json")


def bench_generation(folder: Path, size: Size, device: torch.device) -> Line:
    """Compares greedy draws about a picture and a text with `generate` of transformers; both make
    their prompts of sides, and draw as many tokens."""
    from mmemb.backbones import VisionLanguageBackbone
    from mmemb.llm.decoding.cached_rows import collate
    from mmemb.llm.decoding.sampling import Sampling

    backbone = VisionLanguageBackbone(str(folder), dtype="bfloat16", slots=size.draws)

    backbone.requires_grad_(False).to(device)
    sampling = Sampling(size.new_tokens, 1.0, 1.0, 1)

    sides = [shown(size, seed) for seed in range(size.draws)]
    opening = backbone.prompts.tokenizer.encode("<think>", add_special_tokens=False)

    def ours() -> None:
        rationales = backbone.generate(sides, FULL, sampling)
        assert {rationale.num_tokens for rationale in rationales if rationale} == {
            size.new_tokens + len(TAGS)
        }

    @torch.inference_mode()
    def peer() -> None:
        prompts = [backbone.prompts.build(side).followed_by(opening) for side in sides]
        inputs = dict(collate(backbone.model, prompts, "left").inputs)

        # `generate` makes positions of its own.
        del inputs["position_ids"]

        ends, width = sorted(backbone.end_ids), inputs["input_ids"].shape[1]
        ids = backbone.model.generate(
            **inputs, max_new_tokens=size.new_tokens, do_sample=False, eos_token_id=ends
        )

        assert ids.shape[1] == width + size.new_tokens

    name = f"{size.draws} draws of {size.new_tokens} tokens"
    return compare(
        name, synced(ours, device), synced(peer, device), "transformers generate", runs=3
    )


def bench_judge(folder: Path, size: Size, device: torch.device) -> Line:
    """Compares `YesNoJudge` on one pair under K rationales and without with a batch of K + 1
    whole prompts; the other column is what it actually took, not its ideal share."""
    from mmemb.llm.decoding.cached_rows import collate, head
    from mmemb.llm.loading import DTYPES, load_model
    from mmemb.selection import YesNoJudge
    from mmemb.selection.judge_prompt import JudgeStyle

    # A letter is a token here, so that the usual wording alone would be longer than L.
    style = JudgeStyle("", "", "q:", "\nc:", "\nr:", "\n?", max_text_tokens=size.prefix)
    judge = YesNoJudge(str(folder), style, dtype="bfloat16", device=str(device))
    model = load_model(str(folder), None, DTYPES["bfloat16"], False)[0].to(device)
    prompts, query, candidate = judge.prompts, Side("q"), Side("c")
    least = len(prompts.query(query)) + len(prompts.candidate(query, candidate))

    # The wording takes part of P and L, so the texts fill up what is left.
    query = Side(letters(size.prefix - least + 1, 0))
    least = len(prompts.ending(query, thought(3, 0)))

    rationales = [thought(size.ending - least + 3, seed) for seed in range(size.rationales)]

    def ours() -> None:
        judge.score([query], [[candidate]], [rationales], [""])

    @torch.inference_mode()
    def naive() -> None:
        shared = prompts.query(query).followed_by(prompts.candidate(query, candidate).ids)
        endings = [prompts.ending(query, rationale) for rationale in (None, *rationales)]
        assert (len(shared), len(endings[1])) == (size.prefix, size.ending)
        batch = collate(model, [shared.followed_by(ending.ids) for ending in endings], "right")
        states = model.base_model(**batch.inputs, use_cache=False).last_hidden_state
        head(model)(states[torch.arange(len(endings), device=device), batch.end_R]).cpu()

    name = f"judge, P = {size.prefix}, L = {size.ending}, K = {size.rationales}"
    return compare(name, synced(ours, device), synced(naive, device), "whole prompts")


def measure(size: Size, device: torch.device, peak: float | None) -> Iterator[dict[str, Any]]:
    """Yields results by name, as soon as there are some."""
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as name:
        folder = Path(name)

        print("a model of random weights ...", flush=True)
        parameters = write_model(folder / "model", size, device)
        write_pairs(folder, size)
        yield {"parameters": parameters, "sizes": asdict(size)}

        trained: list[Trained] = []

        for case in CASES:
            trained.append(bench_training(case, folder, size, device, peak))
            print(trained[-1], flush=True)
            yield {"training": [asdict(result) for result in trained]}

        print(heading())

        lines: list[Line] = []
        benches: tuple[Callable[..., Line], ...] = (bench_generation, bench_judge)
        for bench in benches:
            allocated(device)  # what the bench before has left goes
            lines.append(bench(folder / "model", size, device))
            print(lines[-1], flush=True)
            yield {"lines": [asdict(line) | {"ratio": line.ratio} for line in lines]}

        drawn = size.draws * size.new_tokens
        rates = {"ours": drawn / lines[0].ours, "transformers": drawn / lines[0].other}
        print("generation, tokens/s: " + ", ".join(f"{k} {v:,.0f}" for k, v in rates.items()))

        yield {"generation_tokens_per_s": rates}


def machine(device: torch.device, peak: float | None) -> dict[str, Any]:
    """Describes the machine and the versions of a measurement."""
    origin = made_now()
    name, memory = platform.processor() or platform.machine(), None
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name, memory = properties.name, properties.total_memory / GIB

    return {
        "device": name, "memory_gib": memory, "peak_tflops": peak, "torch": torch.__version__,
        "cuda": torch.version.cuda, "date": origin.pop("written"), **origin,
    }  # fmt: skip


@command()
def main(
    arguments: Sequence[str] | None = None, program: str = "python -m experiments.bench_gpu"
) -> None:
    """Measures, and writes what it has after every part."""
    parser = argparse.ArgumentParser(
        prog=program, description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: cuda")
    parser.add_argument("--size", choices=SIZES, default="2b", help="of the model (default: 2b)")
    parser.add_argument("--peak-tflops", type=float, help="of the device, dense bfloat16, for MFU")
    parser.add_argument("--out", type=Path, help=f"default of size 2b: {RESULTS}; of tiny: none")

    options = parser.parse_args(arguments)

    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit(
            "error: a GPU is needed, and torch sees none here; --device cpu --size tiny tries the "
            "command without one."
        )

    if options.device == "cpu" and options.size != "tiny":
        sys.exit(f"error: on a CPU size {options.size} would take hours; add --size tiny.")

    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)  # a seed for every build

    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    peak = options.peak_tflops or peak_tflops(name)

    out = options.out or (RESULTS if options.size == "2b" else None)

    results = {"machine": machine(device, peak), "size": options.size}
    for part in measure(SIZES[options.size], device, peak):
        results |= part
        if out is not None:
            write_json(out, results)

    print(out or "nothing was written: a tiny model's figures say nothing; --out FILE keeps them")
