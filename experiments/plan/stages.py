"""The plan of a stage: what it reads and writes, and the memory and work that follow from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import ceil
from typing import final

from experiments.plan.lengths import NO_TOKENS, Tokens
from experiments.plan.memory import (
    Contrast,
    Memory,
    ModelShape,
    Replies,
    Training,
    loss_memory,
    state_memory,
    step_memory,
)
from experiments.plan.precisions import PRECISIONS
from experiments.plan.towers import Call, Tower


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """Sides that are read in one call.

    Attributes:
        per_row: sides for every row of the batch.
        tokens: their tokens, by tower.
        replies: tokens at their ends whose next-token loss is trained; part of the text's tokens.
        together: see `Replies`.
    """

    per_row: float
    tokens: Mapping[str, Tokens]
    replies: Tokens = NO_TOKENS
    together: bool = False

    def scaled(self, tower: str, factor: float) -> Role:
        """Returns the role with tokens of one tower more or less."""
        tokens = self.tokens.get(tower, NO_TOKENS)
        changed = Tokens(tokens.mean * factor, ceil(tokens.longest * factor))
        return replace(self, tokens={**self.tokens, tower: changed})


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """The texts that a stage writes.

    Attributes:
        draws: texts in all.
        prompts: prompts that are read, each once for its draws.
        prompt: tokens of a prompt behind those that all share.
        shared: tokens that all prompts share and that are read once.
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
@dataclass(frozen=True, slots=True)
class JudgeTokens:
    """Tokens that a yes/no judge reads about one pair.

    Attributes:
        candidates: 1 + N that are judged.
        shared: tokens, where prompts share their pieces (docs/method.md section 5).
        naive: tokens, if every prompt were read by itself.
    """

    candidates: int
    shared: float
    naive: float

    @classmethod
    def of_pieces(
        cls, query: float, candidate: float, ending: float, negatives: int, rationales: int
    ) -> JudgeTokens:
        """Returns the tokens of one pair with N negatives and K rationales.

        Args:
            query: P_q, tokens of the query's piece.
            candidate: P_t, of a candidate's piece.
            ending: L, of a rationale and the question.
            negatives: N; the contrast has no part in it.
            rationales: K, donors of placebos among them.

        >>> JudgeTokens.of_pieces(100, 50, 20, negatives=9, rationales=4)
        JudgeTokens(candidates=10, shared=1600, naive=8500)
        """
        candidates, endings = 1 + negatives, 1 + rationales
        return cls(
            candidates,
            query + candidates * (candidate + endings * ending),
            candidates * endings * (query + candidate + ending),
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """The plan of one stage.

    Attributes:
        name: of the stage and its subcommand.
        samples: rows of the data that it reads.
        steps: of training, or batches of all ranks.
        rows: of a batch on one device.
        micro_rows: rows of the batch that are read together.
        model: the model that runs.
        training: how it computes.
        trains: whether there is a backward pass.
        roles: by name.
        contrast: the comparisons of its contrastive losses; None = there are none.
        generation: the texts of a stage that writes.
        judge: tokens of one pair.
        disk: bytes, by what is written.
        host: bytes of each process in the memory of the host, by what is kept there.
        tuned: makes the model with LoRA updates in place of its weights; None = it takes none.
        media_share: the share of pictures in the tokens of the text tower.
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
    tuned: Callable[[], ModelShape] | None = None
    media_share: float = 0.0

    @property
    def micro_batches(self) -> int:
        """Micro-batches into which the rows of a device are cut."""
        return max(1, ceil(self.rows / self.micro_rows)) if self.micro_rows else 1

    def calls(self) -> dict[str, list[Call]]:
        """Returns the calls of one micro-batch by tower, every row as long as the longest."""
        calls: dict[str, list[Call]] = {name: [] for name in self.model.towers}
        for role in self.roles.values():
            for name, tokens in role.tokens.items():
                call = self._call(role, tokens)
                if call.tokens and name in calls:
                    calls[name].append(call)
        return calls

    def replies(self) -> list[Replies]:
        """Returns the learned replies of one micro-batch, every one as long as the longest."""
        return [
            Replies(self._call(role, role.tokens["text"]), role.replies.longest, role.together)
            for role in self.roles.values()
            if role.replies.longest
        ]

    def _call(self, role: Role, tokens: Tokens) -> Call:
        return Call(ceil(min(self.micro_rows, self.rows) * role.per_row), tokens.longest)

    def memory(self) -> Memory:
        """Returns the memory of one device."""
        training = replace(self.training, micro_batches=self.micro_batches)
        if self.trains:
            loss = loss_memory(self.rows, self.contrast) if self.contrast else 0
            return step_memory(self.model, training, self.calls(), loss, self.replies())

        # No graph is kept, so the call that needs most decides.
        running = [
            tower.passing(call, training.precision)
            for name, tower in self.model.towers.items()
            for call in self.calls()[name]
        ]
        # All devices hold the whole model: only training spreads it.
        frozen = replace(self.model, trainable=0, updates=0)
        weights = state_memory(frozen, replace(training, strategy="single")).weights
        return Memory(weights=weights, activations=max(running, default=0), cache=self._cache())

    def _cache(self) -> int:
        """Bytes of the keys and values of all draws under way, at their full length."""
        if (g := self.generation) is None:
            return 0
        tokens = g.slots * (g.prompt.longest + g.most) + g.shared
        return PRECISIONS[self.training.precision].compute * self.model.cached * tokens

    def tokens_per_step(self) -> float:
        """Returns the tokens of the text tower of a step, of all devices, without padding."""
        each = sum(r.per_row * r.tokens["text"].mean for r in self.roles.values())
        return self.rows * self.training.devices * each

    def flops_per_step(self) -> float:
        """Returns the FLOPs of a step, of all devices."""
        total = 0.0
        for role in self.roles.values():
            rows = self.rows * self.training.devices * role.per_row
            for name, tokens in role.tokens.items():
                # A row of mean length stands for all; rows of unequal length cost a little more.
                tower, length = self.model.towers.get(name), round(tokens.mean)
                if tower is not None and length:
                    total += self._passes(tower) * rows * tower.flops(Call(1, length))

            if role.replies.longest:
                passes = self._passes(self.model.towers["text"])
                total += passes * rows * role.replies.mean * self._head_flops
        return total

    def _passes(self, tower: Tower) -> int:
        """Forward passes that a step of a tower is worth.

        The backward pass costs two (gradients of inputs and of weights), with LoRA one (of
        inputs). Recomputed blocks, and graphs that a gradient cache makes again, cost one each.
        """
        if not self.trains:
            return 1
        again = int(self.micro_batches > 1)
        if not tower.trained:
            return 1 + again
        return 1 + (1 if self.model.rank else 2) + self.training.checkpointing + again

    @property
    def _head_flops(self) -> int:
        """FLOPs of the output layer for one token."""
        return 2 * self.model.vocabulary * self.model.hidden

    def flops(self) -> float:
        """Returns the FLOPs of the whole stage, on all devices; of a judge those of what it
        reads."""
        # What a stage writes costs more than the prompts that it reads.
        if self.generation is not None:
            return self.generated()[2]
        return self.steps * self.flops_per_step()

    def generated(self) -> tuple[int, float, float]:
        """Returns prompt tokens, new tokens at the most, and FLOPs of the stage."""
        if (g := self.generation) is None:
            return 0, 0.0, 0.0
        read, new = g.shared + g.prompts * g.prompt.mean, g.draws * g.most

        # Every token attends to a row that is half written.
        length = max(1, round(g.prompt.mean + g.shared + g.most / 2))
        each = self.model.towers["text"].flops(Call(1, length)) / length
        return int(read), float(new), (read + new) * each + new * self._head_flops
