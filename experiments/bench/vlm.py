"""Costs of a generative backbone: judging with shared prefixes, one pass, decoding, the gate.

Measured on SmolLM2's real weights: the language model is where the time goes. Shapes: P tokens of a
prefix, L of a rationale, K rationales of a pair.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from experiments.bench.line import Line, compare, seconds_of
from mmemb.backbones import VisionLanguageBackbone
from mmemb.gate.heads import MlpDepthHead
from mmemb.llm import PromptStyle
from mmemb.llm.decoding.cached_rows import CachedRows, collate, head
from mmemb.llm.decoding.drafts import Draft, PlainForm, write
from mmemb.llm.decoding.sampling import Sampling
from mmemb.llm.prompts.chat_prompt import Prompt
from mmemb.records.inputs import Side
from mmemb.records.rationales import FULL, GREEDY

WORDS = (
    "the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "seven", "red",
    "flags", "wave",
)  # fmt: skip


def bench_judge(model: Path, prefix: int, length: int = 64, num: int = 8) -> Line:
    """Compares one pair under K rationales and without with the ideal share of the naive time:
    naive tokens (K + 1)(P + L), shared ones P + (K + 1) L."""
    backbone = VisionLanguageBackbone(str(model)).requires_grad_(False)

    read = backbone.prompts.tokenizer.encode
    ids = read(" ".join(WORDS * 200))

    shown = Prompt(tuple(ids[:prefix]))
    endings = [Prompt(tuple(ids[n : n + length])) for n in range(num + 1)]

    @torch.inference_mode()
    def shared() -> None:
        rows = CachedRows(backbone.model, [shown])
        rows = rows.fork(torch.zeros(num + 1, dtype=torch.long))
        rows.feed_prompts(endings)
        _ = rows.logits_RV

    @torch.inference_mode()
    def naive() -> None:
        batch = collate(backbone.model, [shown.followed_by(e.ids) for e in endings], "right")
        states = backbone.model.base_model(**batch.inputs, use_cache=False).last_hidden_state
        head(backbone.model)(states[torch.arange(num + 1), batch.end_R])

    ideal = (num + 1) * (prefix + length) / (prefix + (num + 1) * length)
    return _against(
        f"judge, P = {prefix}, L = {length}, K = {num}", shared, naive, 1 / ideal, 1 / 0.85,
        f"naive / {ideal:.1f}, the ideal",
    )  # fmt: skip


def _against(
    name: str,
    ours: Callable[[], Any],
    peer: Callable[[], Any],
    share: float,
    bar: float,
    peer_name: str,
    runs: int = 5,
) -> Line:
    """Compares with a share of the peer's time."""
    line = compare(name, ours, peer, peer_name, runs, bar)
    ratios = tuple(ratio / share for ratio in line.ratios)
    return Line(name, line.ours, line.other * share, ratios, peer_name, bar=bar)


def bench_one_pass(model: Path, rows: int = 16, length: int = 32, runs: int = 5) -> Line:
    """Compares the time that one pass saves over decoding and then embedding with the second
    forward pass that it spares. Decoding is the same loop, without reading the text to its end."""
    backbone = VisionLanguageBackbone(str(model), slots=rows).requires_grad_(False)
    sampling, tokenizer = Sampling(length, 1.0, 1.0, 1), backbone.prompts.tokenizer
    sides = [Side(" ".join(WORDS * 8) + f" number {n}") for n in range(rows)]

    rationales = backbone.generate(sides, FULL, sampling)

    opening = tokenizer.encode("<think>", add_special_tokens=False)
    prompts = [backbone.prompts.build(side).followed_by(opening) for side in sides]

    def one_pass() -> None:
        backbone.think(backbone.read_prompts(sides, sampling), [FULL] * rows, sampling)

    def only_decode() -> None:
        drafts = [Draft.begin(GREEDY, length) for _ in prompts]

        def read(numbers: Sequence[int]) -> tuple[CachedRows, list[list[Draft]]]:
            chosen = [prompts[number] for number in numbers]
            cached = CachedRows.of_sorted(backbone.model, chosen, length)
            return cached, [[drafts[number]] for number in numbers]

        ends = PlainForm(lambda tokens: tokens[-1] in backbone.end_ids)
        write(list(map(len, prompts)), [1] * rows, read, ends, sampling, slots=rows)

    @torch.inference_mode()
    def second_forward() -> None:
        backbone.encode(sides, rationales)

    one_pass(), only_decode(), second_forward()

    measured = []
    for _ in range(runs):
        whole, first, second = map(seconds_of, (one_pass, only_decode, second_forward))
        measured.append((second, first + second - whole))

    ratios = tuple(second / max(saved, 1e-9) for second, saved in measured)
    second, saved = (statistics.median(column) for column in zip(*measured, strict=True))
    return Line("second forward, spared", second, saved, ratios, "time saved", bar=1 / 0.9)


def bench_decoding(model: Path, rows: int = 64, length: int = 48) -> Line:
    """Compares greedy rationales behind unequal prompts with `generate` of transformers."""
    style = PromptStyle(system="Answer in a few words.")
    backbone = VisionLanguageBackbone(str(model), style, slots=rows).requires_grad_(False)

    sampling = Sampling(length, 1.0, 1.0, 1)
    sides = [Side(f"What is {n} plus {n}? " + " ".join(WORDS * (n % 8))) for n in range(rows)]

    opening = backbone.prompts.tokenizer.encode("<think>", add_special_tokens=False)
    prompts = [backbone.prompts.build(side).followed_by(opening) for side in sides]

    def peer() -> None:
        inputs = dict(collate(backbone.model, prompts, "left").inputs)
        del inputs["position_ids"]
        with torch.inference_mode():
            backbone.model.generate(
                **inputs,
                max_new_tokens=length,
                do_sample=False,
                eos_token_id=sorted(backbone.end_ids),
            )

    return compare(
        f"{rows} rationales, unequal lengths", lambda: backbone.generate(sides, FULL, sampling),
        peer, "transformers generate", runs=3, bar=1 / 1.3,
    )  # fmt: skip


def bench_decision(model: Path, rows: int = 32) -> Line:
    """Compares the gate's head over direct states with a hundredth of the pass before it."""
    backbone = VisionLanguageBackbone(str(model)).requires_grad_(False)
    gate = MlpDepthHead(backbone.embedding_dim).eval()
    sides = [Side(" ".join(WORDS) + f" {n}") for n in range(rows)]

    with torch.inference_mode():
        state = backbone.encode(sides)

    @torch.inference_mode()
    def decide() -> None:
        gate(state)

    @torch.inference_mode()
    def direct() -> None:
        backbone.encode(sides)

    return _against(
        f"gate, {rows} queries", decide, direct, 0.01, 1.0, "1 % of their direct embedding"
    )
