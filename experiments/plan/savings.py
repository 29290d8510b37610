"""The settings that would free memory, each alone, with the stage planned again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import ceil

from experiments.plan.memory import GIB
from experiments.plan.stages import StagePlan


def savings(plan: StagePlan) -> list[tuple[str, float, float]]:
    """Returns (setting, GiB freed, GiB needed then), the best first; none that frees nothing."""
    # Each setting is planned by itself, since two of them may free the same memory.
    now = plan.memory().total
    needs = [(name, other.memory().total) for name, other in alternatives(plan)]
    rows = [(name, (now - then) / GIB, then / GIB) for name, then in needs if then < now]
    return sorted(rows, key=lambda row: -row[1])


def alternatives(plan: StagePlan) -> Iterator[tuple[str, StagePlan]]:
    """Yields settings that may save memory, and the stage planned again with each."""
    if plan.trains:
        yield from _of_training(plan)
    yield from _of_precision(plan)
    yield from _of_lengths(plan)

    if plan.generation is not None and plan.generation.slots > 1:
        fewer = max(1, plan.generation.slots // 4)
        generation = replace(plan.generation, slots=fewer)
        yield f"batch_size of the writer: {fewer}", replace(plan, generation=generation)


def _of_training(plan: StagePlan) -> Iterator[tuple[str, StagePlan]]:
    training = plan.training
    released = replace(training, retained_gib=0.0)
    if plan.micro_rows > 1:
        # A kept graph would fill the memory that smaller micro-batches free.
        fewer = max(1, plan.micro_rows // 4)
        name = f"model.gradient_cache: {{micro_batch_size: {fewer}}} (or fewer micro_batch_tokens)"
        yield name, replace(plan, micro_rows=fewer, training=released)
    if training.retained_gib:
        yield "model.gradient_cache.retained_gib: 0", replace(plan, training=released)

    if not training.checkpointing:
        twice = replace(training, checkpointing=True)
        yield "model.gradient_checkpointing: true", replace(plan, training=twice)
    if plan.tuned is not None and not plan.model.rank:
        tuned = plan.tuned()
        yield f"model.lora: {{rank: {tuned.rank}}}", replace(plan, model=tuned)

    if training.strategy != "fsdp2":
        # The batch stays as it is; more ranks take fewer rows each.
        ranks = max(2, training.devices)
        rows = ceil(plan.rows * training.devices / ranks)
        name = f"--config experiments/configs/strategy/fsdp2.yaml --trainer.devices {ranks}"
        spread = replace(training, strategy="fsdp2", devices=ranks)
        yield (
            name,
            replace(plan, training=spread, rows=rows, micro_rows=min(plan.micro_rows, rows)),
        )


def _of_precision(plan: StagePlan) -> Iterator[tuple[str, StagePlan]]:
    training = plan.training
    if training.precision != "float32":
        return
    # Half precision in weights halves the moments, too; a mixed one keeps both whole.
    half = replace(training, precision="bfloat16")
    yield "dtype: bfloat16 (of the backbone, writer or judge)", replace(plan, training=half)
    if plan.trains:
        mixed = replace(training, precision="mixed")
        yield "trainer.precision: bf16-mixed", replace(plan, training=mixed)


def _of_lengths(plan: StagePlan) -> Iterator[tuple[str, StagePlan]]:
    if plan.media_share:
        # Half of the pixels are half of the tokens of pictures, in both towers.
        halved = {name: role.scaled("vision", 0.5) for name, role in plan.roles.items()}
        left = 1 - plan.media_share / 2
        roles = {name: role.scaled("text", left) for name, role in halved.items()}
        yield "style.max_pixels: half of what pictures have now", replace(plan, roles=roles)
    if plan.roles:
        roles = {name: role.scaled("text", 0.5) for name, role in plan.roles.items()}
        yield "style.max_length (max_text_tokens): half of the longest", replace(plan, roles=roles)
