"""Costs of the training engine: the loss, the gradient cache, a step, the loader, the resume."""

from __future__ import annotations

import copy
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, final

import torch
from lightning.pytorch import Callback
from torch import Tensor
from torch.nn import functional

from experiments.bench.line import Line, compare
from mmemb.llm.lora import LoraSettings
from mmemb.losses.ids import PairIds
from mmemb.losses.infonce import contrastive_loss, kept_scores
from mmemb.losses.terms import combine
from mmemb.records.inputs import Side
from mmemb.training.blocks import checkpoint_blocks, compile_blocks
from mmemb.training.gradient_cache import GradientCache, GraphMemory, embed_cached

DIM = 512


def _embeddings(rows: int) -> tuple[Tensor, Tensor, PairIds]:
    torch.manual_seed(0)
    query, target = (
        functional.normalize(torch.randn(rows, DIM), dim=1).requires_grad_() for _ in range(2)
    )
    return query, target, _ids(rows)


def _ids(rows: int) -> PairIds:
    row_B = torch.arange(rows)
    return PairIds(row_B, row_B, row_B[:, None])


def bench_loss_time(rows: int = 8192) -> Line:
    """Compares the masked loss of both directions with two cross entropies over a dense matrix."""
    query, target, ids = _embeddings(rows)
    labels = torch.arange(rows)

    def ours() -> None:
        query.grad = target.grad = None
        contrastive_loss(query, target, ids, temperature=0.05).sum.backward()

    def dense() -> None:
        query.grad = target.grad = None
        score = query @ target.T / 0.05
        loss = functional.cross_entropy(score, labels) + functional.cross_entropy(score.T, labels)
        loss.backward()

    name = f"loss, B = {rows:,}, D = {DIM}"
    return compare(name, ours, dense, "dense, without masks", bar=1.0)


def bench_loss_memory(rows: int = 16384) -> Line:
    """Compares peak memory of loss and backward with that of vectors, gradients and one tile."""
    # A small loss first: libraries allocate at their first call.
    query, target, ids = _embeddings(256)
    contrastive_loss(
        query, target, ids, temperature=0.05
    ).sum.backward()  # what libraries keep for good

    before = _memory("VmRSS")
    query, target, ids = _embeddings(rows)
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest reading

    contrastive_loss(query, target, ids, temperature=0.05).sum.backward()
    peak = _memory("VmHWM") - before

    needed = (4 * rows * DIM + kept_scores(rows, rows) // 2) * 4 / 2**20
    name = f"loss memory, B = {rows:,}"
    return Line(name, peak, needed, (peak / needed,), "vectors, gradients, a tile", "MB", bar=1.2)


def _memory(key: str) -> float:
    """Reads an amount of memory of this process in MB (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024


def _texts(number: int) -> list[Side]:
    return [
        Side(f"the flag of the country whose capital is city {n}", "Find it.")
        for n in range(number)
    ]


def bench_gradient_cache(
    trunk: Path, retained: float, rows: int = 256, size: int = 64, lora: bool = False
) -> Line:
    """Compares a training step in micro-batches with the whole batch at once.

    A forward pass costs 1, a backward pass 2, with frozen weights 1; so embedding all twice costs
    4 / 3, or 3 / 2 with LoRA: the floor of other caches. Ours always keeps the last micro-batch.

    Args:
        trunk: a saved backbone.
        retained: share of the graphs that may stay in memory.
        rows: of the batch.
        size: of a micro-batch.
        lora: whether low-rank updates are trained in place of all weights.
    """
    from mmemb.backbones import load_backbone

    backbone, sides = load_backbone(str(trunk)).train(), _texts(2 * rows)

    if lora:
        backbone.attach_lora(LoraSettings())

    ids = _ids(rows)

    def embed(chosen: Any) -> tuple[Tensor, ...]:
        both = [[side[n] for n in chosen] for side in (sides[:rows], sides[rows:])]
        return tuple(backbone(side) for side in both)

    def step(cache: GradientCache | None) -> None:
        backbone.zero_grad()
        vectors = embed_cached(embed, [1] * rows, cache, backbone.parameters)
        combine(contrastive_loss(*vectors, ids, temperature=0.05)).backward()

    graph = _graph_gib(embed, size, backbone)
    cache = GradientCache(micro_batch_size=size, retained_gib=graph * rows / size * retained)

    floor = 1 + (1 - retained) / (2 if lora else 3)
    bar = 1.25 if retained and not lora else 1.15 * floor

    name = f"gradient cache{', LoRA' * lora}, {100 * retained:.0f} % of graphs kept"
    peer = f"one batch of {rows}; floor {floor:.2f}"
    return compare(name, lambda: step(cache), lambda: step(None), peer, bar=bar)


def _graph_gib(embed: Callable[[Any], Any], size: int, backbone: Any) -> float:
    memory = GraphMemory(1.0, backbone.parameters)
    with memory.counted():
        embed(range(size))
    return memory.used / 2**30


def bench_blocks(trunk: Path, compiled: bool, rows: int = 64) -> Line:
    """Compares a step with compiled or repeated blocks with the blocks as they are."""
    from mmemb.backbones import load_backbone

    sides = _texts(rows)

    def step_of(backbone: Any) -> Callable[[], None]:
        def step() -> None:
            backbone.zero_grad()
            backbone(sides).sum().backward()

        return step

    changed, plain = load_backbone(str(trunk)), load_backbone(str(trunk))
    if compiled:
        compile_blocks(changed.blocks(), "inductor")
    else:
        checkpoint_blocks(changed.blocks())

    name = f"{rows} texts, blocks {'compiled' if compiled else 'computed twice'}"
    return compare(name, step_of(changed), step_of(plain), "as they are")


def bench_step(root: Path, trunk: Path, features: Path, steps: int = 10, runs: int = 5) -> Line:
    """Steps of our Trainer, module and data, against a bare PyTorch loop on the same batches; both
    from the second step on, so that nothing but steps is timed."""
    from datamodules import PairDataModule
    from mmemb.backbones import load_backbone

    groups = {"flags": 1.0}
    data = PairDataModule(str(root), ["pairs/plain"], 32, 16, groups, 0, features=str(features))
    start = load_backbone(str(trunk)).train()

    # The first pair is a warm-up, so it is left out.
    pairs = [
        (
            _our_steps(copy.deepcopy(start), data, steps),
            _bare_steps(copy.deepcopy(start), data, steps),
        )
        for _ in range(runs + 1)
    ][1:]

    ours, bare = (statistics.median(column) for column in zip(*pairs, strict=True))

    # Ratios of neighbouring runs, since the machine's speed drifts between them.
    ratios = tuple(a / b for a, b in pairs)
    return Line(f"{steps} training steps of 32", ours, bare, ratios, "a bare loop", bar=1 / 0.95)


def _our_steps(backbone: Any, data: Any, steps: int) -> float:
    from lightning.pytorch import Trainer

    from callbacks import TrainingHealth
    from lightning_modules import ContrastiveEmbedder
    from mmemb.training.path_losses import PathLosses

    clock = _Clock()

    # Only steps are timed, so Lightning's files and bars are off.
    off = ("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "logger")

    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu",
            max_steps=steps + 1,
            limit_train_batches=steps + 1,
            limit_val_batches=0,
            log_every_n_steps=5,
            use_distributed_sampler=False,
            default_root_dir=folder,
            callbacks=[TrainingHealth(), clock],
            **dict.fromkeys(off, False),
        )

        module = ContrastiveEmbedder(backbone, losses=PathLosses(reasoned=0.0))
        trainer.fit(module.train(), datamodule=data)
    return clock.times[-1] - clock.times[0]


def _bare_steps(backbone: Any, data: Any, steps: int) -> float:
    optimizer = torch.optim.AdamW([p for p in backbone.parameters() if p.requires_grad])

    times = []
    for batch in islice(data.train_dataloader(), steps + 1):
        query, target = backbone(batch.queries), backbone(batch.targets)
        score, labels = query @ target.T / 0.05, torch.arange(len(query))
        loss = functional.cross_entropy(score, labels) + functional.cross_entropy(score.T, labels)

        optimizer.zero_grad()
        (loss / 2).backward()
        optimizer.step()
        times.append(time.perf_counter())
    return times[-1] - times[0]


@final
class _Clock(Callback):
    """Notes the time at which each step was done."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.times.append(time.perf_counter())


def bench_loader(root: Path) -> Line:
    """Compares training batches from shards with raw WebDataset and its decoder."""
    import webdataset as wds

    from datamodules import PairDataModule
    from mmemb.storage.shard_index import ShardIndex

    index = ShardIndex.open(root / "pairs/plain", verify=False)
    steps = len(index.of_shard(index.shard_names[0])) // 32

    data = PairDataModule(str(root), ["pairs/plain"], 32, 32, {}, 0)
    pictures = sum(
        len(side.media)
        for batch in islice(data.train_dataloader(), steps)
        for side in (*batch.queries, *batch.targets)
    )

    def ours() -> None:
        for _ in islice(data.train_dataloader(), steps):
            pass

    def raw() -> None:
        # Both sides decode the same number of pictures.
        read = 0
        shards = [str(index.folder / name) for name in index.shard_names]

        for sample in wds.WebDataset(shards, shardshuffle=False).decode("torchrgb8"):
            read += sum(name.endswith("webp") for name in sample)
            if read >= pictures:
                return

    name = f"load {pictures} pictures, one process"
    return compare(name, ours, raw, "webdataset + its decoder", bar=1 / 0.9)


def bench_resume(root: Path) -> Line:
    """Compares the first batch of a stream at step 100,000 with that of a stream at step 0."""
    from datamodules import PairDataModule

    data = PairDataModule(str(root), ["pairs/plain"], 32, 32, {}, 0)
    _ = data.train_dataloader()

    def first_batch(step: int) -> None:
        stream = data.train_dataloader()
        stream.load_state_dict({"batches": step})
        next(stream)

    return compare(
        "resume at step 100,000", lambda: first_batch(100_000), lambda: first_batch(0),
        "start at step 0", bar=1.5,
    )  # fmt: skip


def bench_state(root: Path) -> Line:
    """Compares capturing the state of a stream with a millisecond."""
    from datamodules import PairDataModule

    stream = PairDataModule(str(root), ["pairs/plain"], 32, 32, {}, 0).train_dataloader()
    next(stream)

    start, rounds = time.perf_counter(), 1000
    for _ in range(rounds):
        torch.save(stream.state_dict(), io.BytesIO())
    seconds = (time.perf_counter() - start) / rounds

    return Line("capture a stream's state", seconds, 1e-3, (seconds / 1e-3,), "1 ms", bar=1.0)


def bench_converter() -> Line:
    """Compares pictures of a data set put into shards with plain decoding and one tar."""
    from experiments.bench.converter import converter_and_plain

    with tempfile.TemporaryDirectory() as folder:
        ours, plain = converter_and_plain(Path(folder))
        return compare("convert 200 pictures", ours, plain, "decode + write a tar", bar=1 / 0.8)
