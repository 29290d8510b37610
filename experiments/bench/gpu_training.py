"""Steps of the recipes' training on one device: time, share of its peak, memory against a plan."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import torch

from experiments.bench.gpu_model import Size, allocated, peak_memory, synced
from experiments.bench.line import seconds_of
from experiments.plan.memory import GIB
from mmemb.storage.run_folder import ExperimentFolder

RECIPES = Path(__file__).parents[1] / "configs/mmeb_v2"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A training that is measured.

    Attributes:
        name: of the case.
        recipe: file of `configs/mmeb_v2`.
        settings: in place of the recipe's.
    """

    name: str
    recipe: str
    settings: tuple[str, ...] = ()

    def arguments(self, folder: Path, size: Size) -> list[str]:
        """Returns arguments of `experiments.run`, for the model and the pairs in a folder."""
        arguments = ["fit", "--config", f"{RECIPES / self.recipe}.yaml"]
        arguments += ["--config", f"{RECIPES / 'gpu.yaml'}", "--vlm", f"{folder / 'model'}"]
        arguments += ["--data_root", str(folder), "--runs", str(folder / "runs")]

        arguments += ["--data.pairs", "[pairs/made-up]", "--data.num_workers", "0"]
        arguments += [f"--data.{name}={size.rows}" for name in ("batch_size", "group_size")]

        if self.recipe == "embedder":
            arguments += ["--data.sidecar", str(ExperimentFolder(folder).selected)]

        return [*arguments, *self.settings]


CASES = (
    Case(name="direct, LoRA", recipe="direct"),
    Case(name="embedder, LoRA", recipe="embedder"),
    Case(
        name="direct, all weights of the language model",
        recipe="direct",
        settings=("--model.lora=null", "--model.backbone.init_args.dtype=float32"),
    ),
)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """Cost of a training step; None where it was not measured.

    Attributes:
        name: recipe, and what is trained.
        tokens: of a step, read by the language model; each counts once, however often it is read.
        seconds: of every step that was timed.
        loss: after them.
        tokens_per_s: by the median step.
        mfu: share of the device's peak, of the FLOPs that a step needs.
        hfu: the same, of those that it does: blocks and micro-batches that run twice count twice.
        planned_gib: at the highest moment, by the planner.
        measured_gib: the same, by the device's allocator.
        ratio: planned / measured.
        fault: why it was not measured.
    """

    name: str
    tokens: int
    seconds: tuple[float, ...] = ()
    loss: float | None = None
    tokens_per_s: float | None = None
    mfu: float | None = None
    hfu: float | None = None
    planned_gib: float
    measured_gib: float | None = None
    ratio: float | None = None
    fault: str = ""

    def __str__(self) -> str:
        if self.measured_gib is None or self.tokens_per_s is None:
            return f"{self.name}: {self.fault}; planned {self.planned_gib:.3g} GiB"
        share = "" if self.mfu is None else f", MFU {self.mfu:.1%}, with repetitions {self.hfu:.1%}"

        return (
            f"{self.name}: {statistics.median(self.seconds):.3g} s a step, "
            f"{self.tokens_per_s:,.0f} tokens/s{share}; memory planned {self.planned_gib:.3g} GiB, "
            f"measured {self.measured_gib:.3g}, ratio {self.ratio:.2f}"
        )


def bench_training(
    case: Case, folder: Path, size: Size, device: torch.device, peak: float | None
) -> Trained:
    """Measures steps of a recipe's own module and data, without a trainer.

    Args:
        case: what is trained.
        folder: of model and pairs.
        size: of the batch.
        device: where.
        peak: TFLOPS of the device; None = not known.
    """
    from experiments.cli.experiment_cli import parse
    from experiments.plan.read import read_plan

    arguments = case.arguments(folder, size)

    plan = read_plan(parse(arguments).as_dict(), "fit", 1)
    tokens, total = round(plan.tokens_per_step()), plan.memory().total
    result = Trained(name=case.name, tokens=tokens, planned_gib=total / GIB)

    # That a recipe does not fit is a result of its own.
    try:
        seconds, loss, used = _run_steps(arguments, size, device)
    except torch.OutOfMemoryError:
        return replace(result, fault="does not fit into the device's memory")

    median = statistics.median(seconds)

    # MFU counts each pass once, HFU also what blocks and micro-batches compute again.
    once = replace(plan.training, checkpointing=False)
    shares = [
        each.flops_per_step() / median / (peak * 1e12) if peak else None
        for each in (replace(plan, training=once, micro_rows=plan.rows), plan)
    ]

    return replace(
        result, seconds=seconds, loss=loss, tokens_per_s=tokens / median, mfu=shares[0],
        hfu=shares[1], measured_gib=used / GIB, ratio=total / used,
    )  # fmt: skip


def _run_steps(
    arguments: Sequence[str], size: Size, device: torch.device
) -> tuple[tuple[float, ...], float, int]:
    """Returns seconds of each step, the last loss, and peak memory of one more step, in bytes."""
    from experiments.cli.experiment_cli import build

    # Bytes that the cases before have left are not counted as this one's.
    before = allocated(device)
    module, data = build(list(arguments))

    batch = next(iter(data.train_dataloader())).to(device)
    optimizer = module.to(device).optimizer([p for p in module.parameters() if p.requires_grad])

    losses = []

    def step() -> None:
        # As a trainer's `bf16-mixed`: the forward pass alone lies in autocast.
        with torch.autocast(device.type, torch.bfloat16), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*self.log.*")  # there is no trainer to log to
            loss = module.training_step(batch, 0)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())

    for _ in range(2):  # kernels are chosen, the optimiser's moments made
        synced(step, device)()

    seconds = tuple(seconds_of(synced(step, device)) for _ in range(size.steps))

    states = [x for state in optimizer.state.values() for x in state.values()]
    held = sum(x.nbytes for x in (*module.parameters(), *states))
    return seconds, float(losses[-1]), peak_memory(step, device, held, before)
