"""A plan as the lines that `python -m experiments.plan` prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict

from experiments.plan.memory import GIB
from experiments.plan.stages import StagePlan


def table(plan: StagePlan) -> Iterator[str]:
    """Yields the plan, line by line."""
    yield plan.name
    yield from _model(plan)
    yield from _memory(plan)

    yield "work"
    yield f"  samples           {plan.samples:>16,}"
    yield f"  steps             {plan.steps:>16,}  of {plan.rows} rows a device" + (
        f", {plan.micro_batches} micro-batches" if plan.micro_batches > 1 else ""
    )
    if plan.trains:
        passes = plan.steps * plan.rows * plan.training.devices / max(1, plan.samples)
        yield f"  passes            {passes:>16.3g}  over the samples"
    yield from _read(plan)
    yield from _written(plan)
    yield from _judged(plan)

    yield from _kept("disk", plan.disk)
    if plan.host:
        yield from _kept("host memory of each process", plan.host)


def _model(plan: StagePlan) -> Iterator[str]:
    model = plan.model
    # A stage that only runs trains nothing, whatever its model could learn.
    trained = model.trainable + model.updates if plan.trains else 0
    yield f"  parameters        {model.total + model.updates:>16,}"
    yield f"  trained           {trained:>16,}" + (
        f"  (LoRA {model.updates:,})" if model.rank else ""
    )


def _memory(plan: StagePlan) -> Iterator[str]:
    training, memory = plan.training, plan.memory()
    yield (
        f"memory of each of {training.devices} device(s): {training.precision}, "
        f"{training.strategy}{', recomputed blocks' if training.checkpointing else ''}"
    )
    for name, size in asdict(memory).items():
        yield f"  {name:<18}{size / GIB:>12.3f} GiB"
    yield f"  {'at the most':<18}{memory.total / GIB:>12.3f} GiB"


def _read(plan: StagePlan) -> Iterator[str]:
    for name, role in plan.roles.items():
        for tower, tokens in role.tokens.items():
            rows = f"{role.per_row:.3g} a row"
            words = f"mean {tokens.mean:.0f}, longest {tokens.longest} {tower} tokens"
            yield f"  {name:<18}{rows:>16}: {words}" + (
                f", of which {role.replies.longest} are learned"
                if role.replies.longest and tower == "text"
                else ""
            )

    # The work of a stage that writes lies in its draws, not in its steps.
    if plan.roles and plan.generation is None:
        tokens, flops = plan.tokens_per_step(), plan.flops_per_step()
        yield f"  a step            {tokens:>16,.0f} tokens, {flops / 1e12:.4g} TFLOPs"
        tokens, flops = plan.steps * tokens, plan.steps * flops
        yield f"  all of them       {tokens:>16,.0f} tokens, {flops / 1e15:.4g} PFLOPs"


def _written(plan: StagePlan) -> Iterator[str]:
    if (g := plan.generation) is None:
        return
    read, new, flops = plan.generated()
    yield f"  draws             {g.draws:>16,}  of at most {g.most} new tokens"
    yield f"  prompt tokens     {read:>16,}"
    yield f"  new tokens        {new:>16,.0f}  at the most, {flops / 1e15:.4g} PFLOPs in all"


def _judged(plan: StagePlan) -> Iterator[str]:
    if (each := plan.judge) is None:
        return
    yield (
        f"  judge             {plan.samples * each.shared:>16,.0f} tokens, {each.candidates} "
        f"candidates a pair; each prompt by itself {plan.samples * each.naive:,.0f} "
        f"({each.naive / each.shared:.1f} times as many)"
    )


def _kept(title: str, sizes: Mapping[str, int]) -> Iterator[str]:
    yield title
    for name, size in sizes.items():
        yield f"  {name:<22}{size / GIB:>8.3f} GiB"
