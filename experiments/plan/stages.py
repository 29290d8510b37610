"""A stage as its plan sees it, and what would change if a setting were another one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import ceil
from typing import final

from experiments.plan.layers import PRECISIONS, Call
from experiments.plan.memory import (
    GIB,
    Contrast,
    Memory,
    ModelShape,
    Replies,
    Training,
    cache_memory,
    loss_memory,
    state_memory,
    step_memory,
)
from experiments.plan.work import NO_TOKENS, JudgeTokens, Tokens, pass_factor, tower_flops


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """Sides that are read in one call.

    Attributes:
        per_row: of them for every row of the batch.
        tokens: by tower.
        replies: at their ends, whose next-token loss is trained; part of the text's tokens.
        together: see `Replies`.
    """

    per_row: float
    tokens: Mapping[str, Tokens]
    replies: Tokens = NO_TOKENS
    together: bool = False

    def scaled(self, tower: str, factor: float) -> Role:
        """With tokens of one tower more or less."""
        found = self.tokens.get(tower, NO_TOKENS)
        changed = Tokens(found.mean * factor, ceil(found.longest * factor))
        return replace(self, tokens={**self.tokens, tower: changed})


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What is written.

    Attributes:
        draws: in all.
        prompts: that are read, each once for its draws.
        prompt: tokens of a prompt behind what all share.
        shared: tokens that all share and that are read once.
        most: new tokens of a draw at the most.
        slots: draws under way together.
    """

    draws: int
    prompts: int
    prompt: Tokens
    shared: int
    most: int
    slots: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """One stage.

    Attributes:
        name: of the stage and its subcommand.
        samples: rows of the data that it reads.
        steps: of training, or batches of all ranks.
        rows: of a batch on one device.
        micro_rows: of them that are read together.
        model: what runs.
        training: how; `trains` says whether there is a backward pass.
        roles: by name.
        contrast: what its contrastive losses compare; None = there are none.
        generation: of a stage that writes.
        judge: tokens of one pair.
        disk: bytes by what is written.
        host: bytes of each process in the memory of the host, by what is kept there.
        tuned: the model with LoRA updates in place of its weights; None = it takes none.
        media_share: of the text tower's tokens, those of pictures.
    """

    name: str
    samples: int
    steps: int
    rows: int
    micro_rows: int
    model: ModelShape
    training: Training
    trains: bool
    roles: Mapping[str, Role] = field(default_factory=dict)
    contrast: Contrast | None = None
    generation: Generation | None = None
    judge: JudgeTokens | None = None
    disk: Mapping[str, int] = field(default_factory=dict)
    host: Mapping[str, int] = field(default_factory=dict)
    tuned: ModelShape | None = None
    media_share: float = 0.0

    @property
    def micro_batches(self) -> int:
        """Into which a device's rows are cut."""
        return max(1, ceil(self.rows / self.micro_rows)) if self.micro_rows else 1

    def calls(self) -> dict[str, list[Call]]:
        """The forward calls of one micro-batch, every row as long as the longest."""
        found: dict[str, list[Call]] = {name: [] for name in self.model.towers}
        for role in self.roles.values():
            for name, tokens in role.tokens.items():
                call = self._call(role, tokens)
                if call.tokens and name in found:
                    found[name].append(call)
        return found

    def replies(self) -> list[Replies]:
        """Of one micro-batch, every one as long as the longest."""
        return [
            Replies(self._call(role, role.tokens["text"]), role.replies.longest, role.together)
            for role in self.roles.values()
            if role.replies.longest
        ]

    def _call(self, role: Role, tokens: Tokens) -> Call:
        return Call(ceil(min(self.micro_rows, self.rows) * role.per_row), tokens.longest)

    def memory(self) -> Memory:
        """Of one device."""
        training = replace(self.training, micro_batches=self.micro_batches)
        if self.trains:
            loss = loss_memory(self.rows, self.contrast) if self.contrast else 0
            return step_memory(self.model, training, self.calls(), loss, self.replies())
        precision = PRECISIONS[training.precision]
        # Nothing is kept but what one block needs while it runs.
        running = max(
            (
                call.tokens * max(b.saved(precision, call.length) for b in tower.blocks)
                for name, tower in self.model.towers.items()
                if tower.blocks
                for call in self.calls()[name]
            ),
            default=0,
        )
        still = replace(self.model, trainable=0, updates=0)
        weights = state_memory(still, replace(training, strategy="single")).weights
        return Memory(weights=weights, activations=running, cache=self._cache())

    def _cache(self) -> int:
        if self.generation is None:
            return 0
        g, precision = self.generation, self.training.precision
        length = g.prompt.longest + g.most
        return cache_memory(self.model.towers["text"], g.slots, length, g.shared, precision)

    def tokens_per_step(self) -> float:
        """In the first tower, of all devices, without padding."""
        each = sum(r.per_row * r.tokens["text"].mean for r in self.roles.values())
        return self.rows * self.training.devices * each

    def flops_per_step(self) -> float:
        """Of all devices."""
        training = replace(self.training, micro_batches=self.micro_batches)
        total = 0.0
        for role in self.roles.values():
            rows = self.rows * training.devices * role.per_row
            for name, tokens in role.tokens.items():
                if (tower := self.model.towers.get(name)) is not None:
                    times = pass_factor(self.model, tower, training) if self.trains else 1
                    total += times * tower_flops(tower, rows, tokens.mean)
            if role.replies.longest:
                times = pass_factor(self.model, self.model.towers["text"], training)
                total += times * rows * role.replies.mean * 2 * self._head
        return total

    @property
    def _head(self) -> int:
        """Weights of the output layer."""
        return self.model.vocabulary * self.model.hidden

    def flops(self) -> float:
        """Of the whole stage, on all devices; a judge's are those of what it reads."""
        if self.generation is not None:
            return self.generated()[2]
        return self.steps * self.flops_per_step()

    def generated(self) -> tuple[int, float, float]:
        """Prompt tokens, new tokens at the most, and FLOPs of the stage."""
        if (g := self.generation) is None:
            return 0, 0.0, 0.0
        read, new = g.shared + g.prompts * g.prompt.mean, g.draws * g.most
        text, length = self.model.towers["text"], g.prompt.mean + g.shared + g.most / 2
        attending = sum(block.query for block in text.blocks if block.attends)
        flops = (read + new) * (2 * text.weights + 4 * length * attending)
        return int(read), float(new), flops + new * 2 * self._head


def alternatives(plan: StagePlan) -> Iterator[tuple[str, StagePlan]]:
    """Settings that save memory, each alone, and the stage planned again with it."""
    training = plan.training
    if plan.trains and plan.micro_rows > 1:
        fewer = max(1, plan.micro_rows // 4)
        name = f"model.gradient_cache: {{micro_batch_size: {fewer}}} (or fewer micro_batch_tokens)"
        yield name, replace(plan, micro_rows=fewer, training=replace(training, retained_gib=0.0))
    if plan.trains and training.retained_gib:
        less = replace(training, retained_gib=0.0)
        yield "model.gradient_cache.retained_gib: 0", replace(plan, training=less)
    if plan.trains and not training.checkpointing:
        twice = replace(training, checkpointing=True)
        yield "model.gradient_checkpointing: true", replace(plan, training=twice)
    if plan.trains and plan.tuned is not None and not plan.model.rank:
        yield f"model.lora: {{rank: {plan.tuned.rank}}}", replace(plan, model=plan.tuned)
    if training.precision == "float32":
        half = replace(training, precision="bfloat16")
        yield "dtype: bfloat16 (of the backbone, worker or judge)", replace(plan, training=half)
        if plan.trains:
            mixed = replace(training, precision="mixed")
            yield "trainer.precision: bf16-mixed", replace(plan, training=mixed)
    if plan.trains and training.strategy != "fsdp2":
        ranks = max(2, training.devices)
        spread = replace(training, strategy="fsdp2", devices=ranks)
        rows = ceil(plan.rows * training.devices / ranks)
        name = f"--config experiments/configs/strategy/fsdp2.yaml --trainer.devices {ranks}"
        micro = min(plan.micro_rows, rows)
        yield name, replace(plan, training=spread, rows=rows, micro_rows=micro)
    if plan.media_share:
        seen = {n: r.scaled("vision", 0.5) for n, r in plan.roles.items()}
        roles = {n: r.scaled("text", 1 - plan.media_share / 2) for n, r in seen.items()}
        yield "style.max_pixels: half of what pictures have now", replace(plan, roles=roles)
    if plan.roles:
        roles = {name: role.scaled("text", 0.5) for name, role in plan.roles.items()}
        yield "style.max_length (max_text_tokens): half of the longest", replace(plan, roles=roles)
    if plan.generation is not None and plan.generation.slots > 1:
        fewer = max(1, plan.generation.slots // 4)
        less = replace(plan, generation=replace(plan.generation, slots=fewer))
        yield f"batch_size of the worker: {fewer}", less


def savings(plan: StagePlan) -> list[tuple[str, float, float]]:
    """(setting, GiB freed, GiB needed then), the best first; none that frees nothing."""
    now = plan.memory().total
    found = [(name, other.memory().total) for name, other in alternatives(plan)]
    kept = [(name, (now - then) / GIB, then / GIB) for name, then in found if then < now]
    return sorted(kept, key=lambda row: -row[1])
