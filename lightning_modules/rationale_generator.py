"""RationaleGenerator: stage 1, the prior. Writers write from one side only.

See docs/method.md sections 2 to 4. Shapes: B rows, K draws, W writers, H width of a prompt state.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from typing_extensions import override

from lightning_modules.averaging import check_averaging
from lightning_modules.schedule import with_schedule
from mmemb.distributed import mean_over_ranks
from mmemb.llm.lora import LoraSettings
from mmemb.losses.terms import combine
from mmemb.rationales import NO_DRAW, RationaleWriter, ServerError, merge_drafts
from mmemb.rationales.draft_cache import DIGEST, DRAWS, DrawBook
from mmemb.rationales.draw_seeds import DrawSeeds, SeedBy
from mmemb.rationales.fact_guard import check_unknowing, known_train_facts
from mmemb.rationales.supervised import ReplyBatch
from mmemb.records.batches import PairRowBatch, SideBatch
from mmemb.records.inputs import Side
from mmemb.records.outputs import SidecarOutput, SidecarRow, StepOutput
from mmemb.records.rationales import Rationale, ScoredRationale, scored_to_json
from mmemb.retrieval.running_means import MeanSums
from mmemb.selection.answers import names_target
from mmemb.storage.run_folder import RunFolder

if TYPE_CHECKING:
    from mmemb.rationales.supervised import ReplyTuner

PLAIN_LORA = LoraSettings()
_LOG = logging.getLogger(__name__)

MOST_FAILED = 3
"""Failed shards of one process at which the server itself is taken to be at fault."""


@final
class RationaleGenerator(LightningModule):
    """predict: `rationales/`; test: format, tokens and leaks of the rationales; fit: a writer's
    language model learns the rationales that were kept (the M-step).

    Training pairs get `num_drafts` samples of every writer; queries of the other splits get
    the draws of the test: a greedy one, and further sampled ones if `num_test_draws` > 1.

    A fitted writer has learned the train facts of its `fitted.json`, and no fact of the test. Its
    rationales about their pairs are right more often than the prior of the test, so a model that
    learns from them (the selector's eta, the embedder) learns to trust rationales too much; `gate`,
    `calibration` and `test` stay clean, since no question about them is ever fitted. So a fitted
    writer writes about no train pair of a fact that it was fitted on: fit two, each on one fold
    of the train concepts, and every pair is written about by the writer of the other fold.
    `allow_trained_facts` lifts this, warns, and `test` then counts such rationales as `fitted_...`.

    With `reuse` or `seed_by: content` every draw is made once and found again by content
    (docs/rationales.md), by the file `draws.json` of each sample.

    Args:
        writers: name -> writer; the union of their rationales is the pool.
        num_drafts: K, samples per training query and writer.
        num_test_draws: draws per evaluation query; draw 0 is greedy.
        test_writer: name of the writer that alone writes about splits other than train; null = all.
        max_tokens: longer drafts are dropped and counted.
        prompt_state: name of the writer whose hidden state at its prompt's end goes into
            `prompt_state.npy`, for a gate that reads it; null writes none.
        seed: with key and draft number it decides every draw, so one shard regenerates to the
            same bytes. It also starts the updates of `fit`.
        tuned: name of the writer whose model `fit` trains; the writer itself has no adapter.
        lora: rank, scale and layers of the updates that `fit` trains.
        optimizer: called with the updates.
        num_warmup_steps: steps of linear warm-up.
        allow_trained_facts: predict: let writers write about train facts that they were fitted on.
        reuse: folders of rationales of other runs, whose draws and prompt states are copied instead
            of made again; an empty list reuses none, and lets later runs reuse these.
        seed_by: what stands for the row in a sample's seed, its `key` or its side's `content`.
            Sampled draws coincide across data sets by content alone, greedy ones always.
    """

    def __init__(
        self,
        writers: dict[str, RationaleWriter],
        num_drafts: int = 4,
        num_test_draws: int = 1,
        test_writer: str | None = None,
        max_tokens: int = 96,
        prompt_state: str | None = None,
        seed: int = 0,
        tuned: str | None = None,
        lora: LoraSettings = PLAIN_LORA,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        num_warmup_steps: int = 5,
        allow_trained_facts: bool = False,
        reuse: list[str] | None = None,
        seed_by: SeedBy = "key",
    ) -> None:
        super().__init__()
        if max_tokens < 1:
            raise ValueError(f"max_tokens {max_tokens}: expected 1 or more, or no draw is kept.")
        self.draw_seeds = DrawSeeds(seed, num_drafts, num_test_draws, seed_by)

        for role, name in (
            ("prompt_state", prompt_state),
            ("tuned", tuned),
            ("test_writer", test_writer),
        ):
            if name is not None and name not in writers:
                raise ValueError(f"{role} {name!r} names no writer; they are {sorted(writers)}")

        self.writers = writers  # a dict, not a ModuleDict: frozen writers stay out of checkpoints
        self.prompt_state, self.test_writer = prompt_state, test_writer
        self.max_tokens, self.seed = max_tokens, seed

        self.counts: Counter[str] = Counter()
        self._drawn: Counter[tuple[str, str]] = Counter()  # by split and writer
        self._usable: Counter[tuple[str, str]] = Counter()
        self.sums = MeanSums()

        self.tuned, self.lora, self.allow_trained_facts = tuned, lora, allow_trained_facts
        self.optimizer, self.num_warmup_steps = optimizer, num_warmup_steps
        self.adapter = nn.ParameterDict()  # the updates alone: no checkpoint holds the whole model
        self._tuner: ReplyTuner | None = None

        self.reuse, self._book, self._failed = reuse, None, FailedShards()

    # fit

    @override
    def setup(self, stage: str) -> None:
        if stage == "predict" and (self.reuse is not None or self.draw_seeds.seed_by == "content"):
            self._book = DrawBook(self.reuse or (), self.counts)
        if stage != "fit":
            return
        self._check_tuned()
        self._tuner = self.writers[self.tuned].tuner(self.lora, self.seed)
        # A ParameterDict takes no dots in its keys.
        parameters = self._tuner.parameters.items()
        self.adapter = nn.ParameterDict({name.replace(".", "/"): p for name, p in parameters})

    @override
    def on_fit_start(self) -> None:
        check_averaging(self, self.trainer)

    @override
    def prepare_data(self) -> None:
        # Before the data module looks for rationales to train on.
        if self.trainer.state.fn == "fit":
            self._check_tuned()

    def _check_tuned(self) -> None:
        if self.tuned is None:
            raise ValueError(
                "tuned is not set: name the writer whose language model fit trains on the kept "
                "rationales, as experiments/configs/pocket/generator.yaml does."
            )

    @override
    def on_train_start(self) -> None:
        self._tuner.to(self.device)

    @override
    def training_step(self, batch: ReplyBatch, batch_idx: int) -> Tensor:
        loss = combine(self._tuner.loss(batch.sides, batch.rationales))
        # A rank's loss is of its own rows, so the loss of the batch is the mean over ranks.
        self.log_dict(mean_over_ranks({"train/loss": loss}), batch_size=len(batch.keys))
        return loss

    @override
    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.adapter.parameters())
        return with_schedule(optimizer, self.trainer, self.num_warmup_steps)

    @override
    def on_train_end(self) -> None:
        if self.trainer.is_global_zero:
            (folder,) = self.products("fit")
            self._tuner.save(folder)

    def products(self, stage: str) -> list[Path]:
        """The trained adapter; see `mmemb.storage.products.Producer`."""
        return [RunFolder(Path(self.trainer.default_root_dir)).generator] if stage == "fit" else []

    # predict

    @override
    def predict_step(self, batch: SideBatch, batch_idx: int, dataloader_idx: int = 0) -> StepOutput:
        sidecar = self._failed.attempt(batch.shard, lambda: self._predicted(batch))
        return StepOutput(sidecar=sidecar)

    def _predicted(self, batch: SideBatch) -> SidecarOutput:
        seeds_BK = self.draw_seeds.of_batch(batch.keys, batch.sides, batch.metas)

        # NO_DRAW in place of a seed keeps the shape: every writer gets the whole batch.
        draws = [
            (writer, seeds_BK.masked_fill(withheld_B[:, None], NO_DRAW))
            for writer, withheld_B in zip(self.writers.values(), self._withheld(batch), strict=True)
        ]

        pools: list[list[Rationale]] = [[] for _ in batch.keys]
        for writer, seeds in draws:
            for pool, written in zip(pools, self._write(writer, batch.sides, seeds), strict=True):
                pool.extend(written)

        members: list[dict[str, Any]] = [
            {"json": self._drafts_json(pool, meta)}
            for pool, meta in zip(pools, batch.metas, strict=True)
        ]

        for row, state_H in self._prompt_states(batch).items():
            members[row]["prompt_state.npy"] = state_H.numpy().astype(np.float16)
        rows = map(SidecarRow, batch.keys, members, self._recorded(batch, draws, members))
        return SidecarOutput(batch.shard, tuple(rows))

    def _write(
        self, writer: RationaleWriter, sides: Sequence[Side], seeds_BK: Tensor
    ) -> list[list[Rationale]]:
        if self._book is not None:
            return self._book.write(writer, sides, seeds_BK)
        written = writer.write(sides, seeds_BK)

        # The book counts its own tokens, since a draw that it copies costs none.
        tokens = sum(rationale.num_tokens for pool in written for rationale in pool)
        self.counts["generated tokens"] += tokens
        return written

    def _recorded(
        self,
        batch: SideBatch,
        draws: Sequence[tuple[RationaleWriter, Tensor]],
        members: Sequence[dict[str, Any]],
    ) -> Sequence[Mapping[str, str]]:
        """Adds to `members` the file by which a later run finds the draws; returns the metas."""
        if self._book is None:
            return batch.metas
        metas: list[Mapping[str, str]] = []

        for row, (side, meta) in enumerate(zip(batch.sides, batch.metas, strict=True)):
            state_writer = (
                self.writers[self.prompt_state] if "prompt_state.npy" in members[row] else None
            )
            seeds = [(writer, seeds_BK[row]) for writer, seeds_BK in draws]
            if record := self._book.record(side, seeds, state_writer):
                members[row][DRAWS] = record
            metas.append({**meta, DIGEST: side.digest} if record else meta)

        # Trimmed once per batch, or the book would grow with the data set.
        self._book.trim()
        return metas

    def _withheld(self, batch: SideBatch) -> Tensor:
        """Returns a bool (W, B), true where a writer does not write: it was fitted on the fact, or
        another writer alone writes for the test."""
        train_B = torch.tensor([meta["split"] == "train" for meta in batch.metas])
        named_W1 = torch.tensor([[self.test_writer in (None, name)] for name in self.writers])
        return self._known(batch) | ~(named_W1 | train_B)

    def _known(self, batch: SideBatch) -> Tensor:
        writers = tuple(self.writers.values())
        knows_WB = known_train_facts(writers, batch.sides, batch.metas)
        if not self.allow_trained_facts:
            check_unknowing(knows_WB, writers, batch.sides, batch.metas)
            return knows_WB
        self.counts["about trained facts"] += int(knows_WB.any(0).sum())
        return torch.zeros_like(knows_WB)

    def _prompt_states(self, batch: SideBatch) -> dict[int, Tensor]:
        """Maps a row to its (H,) prompt state; a row that the writer cannot read is absent."""
        if self.prompt_state is None:
            return {}
        writer = self.writers[self.prompt_state]
        rows = [row for row, side in enumerate(batch.sides) if writer.can_read(side)]
        sides = [batch.sides[row] for row in rows]
        states = (
            writer.prompt_states(sides)
            if self._book is None
            else self._book.prompt_states(writer, sides)
        )
        return dict(zip(rows, states, strict=True))

    @override
    def on_predict_end(self) -> None:
        counts = ", ".join(f"{name} {self.counts[name]}" for name in sorted(self.counts))
        print(f"rationales: {counts or 'nothing to generate, 0 tokens'}")

        if self.counts["about trained facts"]:
            _LOG.warning(
                "allow_trained_facts: %d train pairs were written about by a writer that was "
                "fitted on their facts. Their rationales are righter than those of the test will "
                "be, and names_target on train says nothing about it; other splits are clean.",
                self.counts["about trained facts"],
            )

        # A writer whose draws are all dropped would leave empty pools without an error.
        for split, name in sorted(self._drawn.keys() - self._usable.keys()):
            _LOG.warning(
                "split %s: none of the %d draws of %s can be used: they are empty, malformed or "
                "over max_tokens (%d), or the prompt names their concept. Look at what it writes.",
                *(split, self._drawn[split, name], name, self.max_tokens),
            )

    # test

    @override
    def test_step(self, batch: PairRowBatch, batch_idx: int) -> None:
        rows = [
            (scored.rationale, pair)
            for pair, pool in zip(batch.pairs, batch.rationales, strict=True)
            for scored in pool
        ]

        facts = {writer.name: writer.trained_facts for writer in self.writers.values()}

        for rationale, pair in rows:
            values = {
                "format_rate": float(bool(rationale.thinking and rationale.answer)),
                "reasoning_tokens": float(rationale.num_tokens),
                "answer_mentioned": float(names_target(rationale.plain, pair.answers)),
            }

            # Apart, since on trained facts a writer is right more often than on those of the test.
            is_fitted = pair.fact in facts.get(rationale.writer, ())
            self.sums.add_all(values, prefix="test/fitted_" if is_fitted else "test/")

    @override
    def on_test_epoch_end(self) -> None:
        # Sums: ranks may hold unequal numbers of drafts. The means are equal on all of them.
        self.log_dict(self.sums.compute(), sync_dist=True)
        self.sums.reset()

    def _drafts_json(
        self, pool: list[Rationale], meta: Mapping[str, str]
    ) -> list[dict[str, object]]:
        """Merges and cleans a training pool, and drops draws about a concept that the writer's
        prompt names. At test time a broken draw was paid for, so it stays (an embedder reads
        nothing in it)."""
        split = meta["split"]
        self.counts["drawn"] += len(pool)
        self._drawn.update((split, rationale.writer) for rationale in pool)

        if split == "train":
            concepts = frozenset().union(*(writer.concepts for writer in self.writers.values()))
            self.counts["named in the prompt"] += len(pool) * (meta["concept"] in concepts)
            pool = [] if meta["concept"] in concepts else pool

            pool, dropped = merge_drafts(pool, max_tokens=self.max_tokens)
            self.counts.update(dropped)

        # A broken draw that stays has no answer: an embedder reads nothing in it.
        self._usable.update((split, rationale.writer) for rationale in pool if rationale.answer)
        return [scored_to_json(ScoredRationale(rationale)) for rationale in pool]


@final
class FailedShards:
    """Remembers failed shards, since the rows of one come in several batches."""

    def __init__(self) -> None:
        self._said: dict[str, str] = {}

    def attempt(self, shard: str, make: Callable[[], SidecarOutput]) -> SidecarOutput:
        """Returns the output of `make`, or the reason why it cannot be made now.

        Args:
            shard: name of the shard that the rows belong to.
            make: asks writers.

        Raises:
            ServerError: too many shards have failed.
        """
        # A shard that failed is not asked again: one absent row makes it a hole in any case.
        if shard not in self._said:
            try:
                return make()
            except ServerError as error:
                self._said[shard] = str(error)
                if len(self._said) >= MOST_FAILED:
                    raise
        return SidecarOutput(shard, (), self._said[shard])
