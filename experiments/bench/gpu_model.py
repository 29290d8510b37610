"""Model of random weights, made-up sides and a device for `experiments.bench_gpu`.

The tokenizer is that of the tiny models, so a letter is a token; the vocabulary has its full size.
"""

from __future__ import annotations

import gc
import io
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from string import ascii_lowercase
from typing import Any, final

import torch
from PIL import Image

from datamodules.prepare.tiny_vlm.build import TAGS, write_tiny_vlm
from mmemb.records.inputs import Media, Side
from mmemb.records.rationales import Rationale, ScoredRationale, scored_to_json
from mmemb.storage.pretrained import load_pretrained
from mmemb.storage.run_folder import ExperimentFolder
from mmemb.storage.shard_index import ShardIndex
from mmemb.storage.shard_writer import (
    Sample,
    encode_members,
    finish_manifest,
    write_folder,
    write_shard,
)
from mmemb.storage.tensor_files import quiet_loading


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Size of the model and of its inputs.

    Attributes:
        text: settings of the language model that differ from the tiny one's.
        vision: of the vision tower, likewise.
        tied: whether the head is the matrix of the embeddings.
        edge: pixels of a picture's side.
        letters: of a query's and a target's text.
        thought: letters of a rationale in training.
        rows: of a training batch.
        steps: that are timed; two more come before them.
        draws: prompts that are written about together.
        new_tokens: of each draw.
        prefix: P, tokens of a pair that is judged.
        ending: L, tokens of a rationale and the question.
        rationales: K, of a pair that is judged.
    """

    text: Mapping[str, Any] = field(default_factory=dict)
    vision: Mapping[str, Any] = field(default_factory=dict)
    tied: bool = False
    edge: int
    letters: int
    thought: int
    rows: int
    steps: int
    draws: int
    new_tokens: int
    prefix: int
    ending: int
    rationales: int


_ROPE = {
    "rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20],
    "mrope_interleaved": True,
}  # fmt: skip

SIZES: Mapping[str, Size] = {
    # As the config.json of Qwen3-VL-2B-Instruct has it; ids of tokens are those of the tokenizer.
    "2b": Size(
        text={
            "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28,
            "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
            "vocab_size": 151936, "max_position_embeddings": 262144, "initializer_range": 0.02,
            "rope_parameters": _ROPE,
        },
        vision={
            "depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16,
            "out_hidden_size": 2048, "patch_size": 16, "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [5, 11, 17],
        },
        tied=True, edge=512, letters=128, thought=96, rows=64, steps=5, draws=32, new_tokens=64,
        prefix=1024, ending=64, rationales=8,
    ),
    "tiny": Size(
        edge=32, letters=8, thought=8, rows=9, steps=1, draws=4, new_tokens=8,
        prefix=128, ending=32, rationales=3,
    ),
}  # fmt: skip


def write_model(folder: Path, size: Size, device: torch.device) -> int:
    """Writes model, tokenizer and processor to a folder that the Auto classes read.

    The weights are drawn on the device, in bfloat16. Tokens that would end a draw hardly ever win,
    so that all draws have the same length.

    Returns:
        The number of parameters.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    with quiet_loading():
        write_tiny_vlm(folder)
        processor: Any = load_pretrained(AutoProcessor, folder)
        data = load_pretrained(AutoConfig, folder).to_dict()

    data["text_config"] |= {**size.text, "tie_word_embeddings": size.tied}
    data["vision_config"] |= size.vision
    config = AutoConfig.for_model(**data | {"tie_word_embeddings": size.tied})

    with torch.random.fork_rng([device.index or 0] if device.type == "cuda" else []), device:
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)

    tokenizer = processor.tokenizer
    ends = [*tokenizer.all_special_ids, *tokenizer.convert_tokens_to_ids(list(TAGS))]

    # Rows of tokens that would end a draw become small, so that such a token hardly ever wins.
    with torch.no_grad():
        model.get_output_embeddings().weight[ends] *= 0.01

    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id

    with quiet_loading():
        model.save_pretrained(folder)

    # The processor of the tiny model cuts other patches than this vision tower reads.
    for part in (processor.image_processor, processor.video_processor):
        part.patch_size = config.vision_config.patch_size
    processor.image_processor.size = {"shortest_edge": 256, "longest_edge": size.edge**2}
    tokenizer.model_max_length = config.get_text_config().max_position_embeddings
    processor.save_pretrained(folder)

    return sum(p.numel() for p in model.parameters())


def write_pairs(root: Path, size: Size) -> None:
    """Writes pairs, `pairs/made-up`, and a rationale of each query, `selected`: a picture and a
    text ask for a text."""
    (root / "tasks.json").write_text("[]")
    pairs = [
        Sample(f"{row:05d}", _pair(size, row), _META | {"fold": ""}) for row in range(size.rows)
    ]

    settings = {"prefix": "made-up", "samples_per_shard": size.rows, "fingerprint": "made-up"}
    write_folder(root / "pairs/made-up", pairs, **settings)

    rationales = [
        ScoredRationale(thought(size.thought, row), {"gain": 1.0}, kept=True, weight=1.0)
        for row in range(size.rows)
    ]

    kept = [
        Sample(pair.key, encode_members({"json": [scored_to_json(rationale)]}))
        for pair, rationale in zip(pairs, rationales, strict=True)
    ]

    name, source = "made-up-000000.tar", ShardIndex.open(root / "pairs/made-up")
    write_shard(ExperimentFolder(root).selected, name, kept, made_from=[source.origin(name)])
    finish_manifest(ExperimentFolder(root).selected, "", [name])


_META = {
    "task": "made-up", "split": "train", "concept": "made-up", "fact": "made-up",
    "source": "made-up",
}  # fmt: skip


def _pair(size: Size, row: int) -> dict[str, bytes]:
    query, target = shown(size, row), f"target-{row}"
    data = _META | {
        "gallery": "made-up", "instruction": "", "text": query.text, "target_instruction": "",
        "target_text": letters(size.letters, -1 - row), "target_name": target,
        "positives": [target], "answers": [target],
    }  # fmt: skip

    pixels, picture = query.media[0].pixels, io.BytesIO()
    assert pixels is not None
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(picture, "WEBP", quality=100)
    return {"json": json.dumps(data, allow_nan=False).encode(), "q0.webp": picture.getvalue()}


def letters(number: int, seed: int) -> str:
    """Returns a text of so many tokens."""
    return "".join(Random(seed).choices(ascii_lowercase, k=number))


def shown(size: Size, seed: int) -> Side:
    """Returns a side of a picture and a text."""
    generator = torch.Generator().manual_seed(seed)
    shape = (3, size.edge, size.edge)
    pixels = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    return Side(letters(size.letters, seed), media=(Media("image", f"made-up-{seed}", pixels),))


def thought(number: int, seed: int) -> Rationale:
    """Returns a rationale of so many letters between its tags."""
    text = f"<think>{letters(number - 2, seed)}</think><answer>ok</answer>"
    return Rationale(text, "made-up", "", "", "", "", seed=seed, num_tokens=number + 4)


# the device

_PEAKS = (
    ("H100 PCIe", 756), ("H100 NVL", 835), ("H200 NVL", 835), ("H100", 989), ("H200", 989),
    ("GH200", 989), ("A100", 312), ("L40S", 362), ("L4", 121), ("RTX 4090", 165), ("RTX 3090", 71),
)  # fmt: skip
"""TFLOPS in bfloat16 by the makers' data sheets, without sparsity, sums in fp32."""


def peak_tflops(name: str) -> float | None:
    """Returns the peak of a device in TFLOPS; None = not known.

    >>> peak_tflops("NVIDIA H100 80GB HBM3"), peak_tflops("NVIDIA H100 PCIe"), peak_tflops("L40")
    (989.0, 756.0, None)
    """
    words = name.replace("-", " ").split()
    if {"MIG", "Laptop", "D"} & {*words}:  # a share of a device, or a slower one of its name
        return None

    whole = f" {' '.join(words)} "
    return next((float(peak) for device, peak in _PEAKS if f" {device} " in whole), None)


def synced(run: Callable[[], Any], device: torch.device) -> Callable[[], None]:
    """Returns a call of `run` that waits for all that it has put into the device's queue."""

    def waits() -> None:
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return waits


def allocated(device: torch.device) -> int:
    """Returns the bytes that tensors hold on a GPU now, after a clean-up; 0 on a CPU."""
    gc.collect()
    if device.type != "cuda":
        return 0

    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated(device)


def peak_memory(run: Callable[[], Any], device: torch.device, held: int, before: int) -> int:
    """Returns the bytes at the highest moment of a call, gaps of the allocator not included.

    Args:
        run: the call.
        device: on which it runs.
        held: bytes of the tensors that live before it; a CPU's allocator reports changes alone.
        before: bytes on a GPU that belong to others.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        synced(run, device)()
        return torch.cuda.max_memory_allocated(device) - before

    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # else it complains that there is no GPU
    activities = [torch.profiler.ProfilerActivity.CPU]

    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        run()

    autograd_profile: Any = profiler.profiler
    events = [e for e in autograd_profile.kineto_results.events() if e.name() == "[memory]"]

    # A CPU has no counter of its peak, so the profiler's changes are summed in their order.
    now = peak = held
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)

    return peak
