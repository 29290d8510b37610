"""GatingPolicy: stage 4, the choice of the queries that are worth a rationale.

See docs/method.md section 7. Shapes: B queries, S state width, A depths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from tqdm import tqdm
from typing_extensions import override

from lightning_modules.averaging import check_averaging
from lightning_modules.schedule import num_training_steps
from mmemb.backbones import load_backbone
from mmemb.backbones.base import saved_spec
from mmemb.backbones.generative import DirectVectors
from mmemb.distributed import gather_objects, mean_over_ranks, sum_over_ranks
from mmemb.gate.adaptive_embedder import AdaptiveEmbedder
from mmemb.gate.budget import BudgetCalibration, Unit, check_budget
from mmemb.gate.collapse import collapse_warning
from mmemb.gate.decision_rows import decision_rows
from mmemb.gate.encoded import Encoded
from mmemb.gate.heads import DepthHead, MlpDepthHead, check_head
from mmemb.gate.latency import fixed_sample, mean_latency, measure_latency
from mmemb.gate.policy_gradients import reward_BA, uniform_by_key
from mmemb.gate.policy_loss import Estimator, OldPolicy, policy_loss
from mmemb.gate.reasoners import Written
from mmemb.losses.terms import combine
from mmemb.rationales.writers.base import RationaleSource, check_prompt_state
from mmemb.rationales.writers.loading import check_writer
from mmemb.records.batches import DepthValueBatch, QueryBatch, RankingBatch
from mmemb.records.gate_state import check_parts
from mmemb.records.inputs import Side
from mmemb.records.loss_term import LossTerm
from mmemb.records.outputs import DecisionOutput, QueryOutput, SidecarOutput, StepOutput
from mmemb.records.pairs import Query
from mmemb.records.rationales import DIRECT, greedy_at
from mmemb.records.schema import to_json
from mmemb.retrieval.galleries import GalleryCollector, embed_candidates
from mmemb.retrieval.running_means import MeanSums
from mmemb.storage.files import whole_folder
from mmemb.storage.json_files import write_json
from mmemb.storage.protocols import GateData, require
from mmemb.storage.run_marks import check_copied, note_run


@final
class GatingPolicy(LightningModule):
    """fit: the gate on split `gate`, prices of budgets on `calibration`; predict: `decisions/`;
    test: retrieval through `AdaptiveEmbedder`, and live milliseconds of 32 fixed queries.

    Args:
        embedder: folder of the embedder's run.
        gate_run: folder of the gate's own fit, read by predict and test.
        writers: name of a depth -> the writer that writes at it, cheapest first; settings are saved
            with the embedder. `{full: ...}` is the paper's binary gate.
        head: called with the width of the state and the number of depths, direct among them.
        state: inputs of the gate, some of `embedding`, `scores` and `prompt_state`
            (`mmemb.records.gate_state`).
        gallery_temperature: tau of the scores whose shape a state with `scores` holds: the
            `gallery_temperature` of the depth values.
        estimator: `reinforce` (leave-one-out baseline), `exact` (closed form), `grpo` (normalised
            within the group, clipped against a policy some steps old), or `supervised`.
        num_actions: actions per state of `reinforce`.
        token_cost: lambda, what a token costs, in nats of depth value.
        clip: c, bound on the depth value difference.
        budget: upper bound on what an eligible query costs on average; null = none.
        unit: unit of the budget: `invocation` (a share), `tokens` or `milliseconds`; the last
            one needs the latency.json of an earlier `test`.
        seed: seed of the actions' noise.
        measure_latency: true if `test` measures milliseconds.
        write_during_test: true if `test` lets the writers write, as for a benchmark that stage 1
            never saw, instead of reading the rationales of stage 1.
    """

    def __init__(
        self,
        embedder: str,
        gate_run: str,
        writers: dict[str, RationaleSource],
        head: Callable[[int, int], DepthHead] = MlpDepthHead,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        estimator: Estimator = "reinforce",
        num_actions: int = 4,
        token_cost: float = 0.01,
        clip: float = 3.0,
        budget: float | None = None,
        unit: Unit = "invocation",
        state: list[str] | None = None,
        gallery_temperature: float = 0.05,
        seed: int = 0,
        measure_latency: bool = True,
        write_during_test: bool = False,
    ) -> None:
        super().__init__()
        if budget is not None:
            check_budget(budget, unit)

        self.embedder, self.gate_run = Path(embedder), Path(gate_run)
        self.writers = dict(writers)  # not a ModuleDict: writers stay out of checkpoints
        self.state = check_parts(state or ["embedding"])
        self.gallery_temperature = gallery_temperature
        self.make_head, self.optimizer = head, optimizer
        self.estimator, self.num_actions, self.seed = estimator, num_actions, seed
        self.token_cost, self.clip = token_cost, clip
        self.budget, self.unit = budget, unit
        self.measure_latency, self.write_during_test = measure_latency, write_during_test

        # fit: the head, GRPO's older copy of it, and rows (key, logits, costs) of `calibration`.
        self.head: DepthHead | None = None
        self._old = OldPolicy()
        self.calibration: BudgetCalibration | None = None
        self._calibrated_at: int | None = None
        self._is_calibrated = False  # by the weights of now
        self._calibration_rows: list[tuple[str, list[float], list[float]]] = []
        self._sums = MeanSums()

        # test: embedded candidates, and the queries that are timed live at the end.
        self._candidates = GalleryCollector()
        self._timed: list[Query] = []
        self._measured = False
        self._measured_states: list[tuple[Side, Tensor]] = []

    @override
    def setup(self, stage: str) -> None:
        if stage == "fit":
            data = require(self.trainer.datamodule, GateData, "GatingPolicy")
            self._check_depths(data.depths)
            data.check_embedder(self.embedder)

            # All states are read first: the head needs their width, and is scaled by them.
            states_NS = data.gate_inputs().state(self.state)
            if not len(states_NS):
                raise ValueError(
                    "Split `gate` has no eligible query, so the gate has nothing to learn from: "
                    "give the stage `rationales` a writer that reads some of its queries, or "
                    "prepare more."
                )
            self.head = self.make_head(states_NS.shape[1], 1 + len(self.writers))
            self.head.standardise(states_NS)
            self._check_loads_again()
        elif stage == "validate":
            self.head = AdaptiveEmbedder.from_pretrained(
                self.gate_run / "adaptive", self.writers
            ).head
        elif stage in {"test", "predict"}:
            check_copied(self.gate_run / "adaptive", self.embedder)
            self.adaptive = AdaptiveEmbedder.from_pretrained(
                self.gate_run / "adaptive", self.writers
            )
            self.adaptive.to(self.trainer.strategy.root_device)  # no submodule: moved by hand

            # Times belong to a machine, so they are not saved with the gate.
            if self.unit == "milliseconds":
                latency, _ = mean_latency(Path(f"{self.gate_run}-test") / "latency.json")
                self.adaptive.calibration = replace(
                    self.adaptive.calibration, milliseconds=latency.depth_ms
                )

    def _check_loads_again(self) -> None:
        """Refuses a backbone, head or writer that a saved gate could not load, before the fit."""
        saved_spec(self.embedder / "backbone")
        with isolate_rng():
            check_head(self.head)
        for writer in self.writers.values():
            check_writer(writer)

    def _check_depths(self, measured: Sequence[str]) -> None:
        if list(measured) != [DIRECT, *self.writers]:
            raise ValueError(
                f"The gate has writers for the depths {list(self.writers)}, but the depth values "
                f"were measured at {list(measured)}: set `depths` of the stage `depth_values` to "
                f"{[DIRECT, *self.writers]} and make them again, or change `writers`."
            )

    # fit

    @override
    def on_fit_start(self) -> None:
        check_averaging(self, self.trainer)

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["old_policy"] = self._old.state_dict()
        if self._is_calibrated:
            checkpoint["calibration"] = {
                "step": self._calibrated_at,
                **self.calibration.to_json(),
            }

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.head is None:
            return
        self._old.load_state_dict(self.head, checkpoint.get("old_policy", {}))

        # That of the same weights, for a fit that leaves those of its best checkpoint.
        saved = dict(checkpoint.get("calibration", {}))
        self._is_calibrated = bool(saved)
        if saved:
            self._calibrated_at = saved.pop("step")
            self.calibration = BudgetCalibration(**saved)

    @override
    def training_step(self, batch: DepthValueBatch, batch_idx: int) -> dict[str, Any]:
        self._is_calibrated = False

        # Rows that are not eligible may hold NaN, whose gradient would reach every weight.
        state_BS = torch.where(batch.eligible_B[:, None], batch.inputs.state(self.state), 0.0)
        logit_BA = self.head(state_BS)
        reward = reward_BA(
            batch.depth_value_BA, batch.cost_BA, clip=self.clip, token_cost=self.token_cost
        )

        loss = combine(self._estimate(state_BS, logit_BA, reward, batch))

        # A rank's loss is of its own queries, so the loss of the batch is the mean over ranks.
        scalars = mean_over_ranks({"train/loss": loss})

        # As sums, since a rank may hold no eligible query, and so has no mean.
        expected_R = (logit_BA.detach().softmax(1) * reward).sum(1)[batch.eligible_B]
        counted = torch.stack([expected_R.sum(), expected_R.new_tensor(len(expected_R))])
        total, count = sum_over_ranks(counted)
        if count:
            scalars["train/reward"] = total / count
        self.log_dict(scalars, batch_size=len(batch.keys))
        return StepOutput(loss=loss, decisions=self._decisions(logit_BA, batch)).as_mapping()

    def _estimate(
        self, state_BS: Tensor, logit_BA: Tensor, reward: Tensor, batch: DepthValueBatch
    ) -> LossTerm:
        # Noise by key and step: equal on any number of ranks, different in every step.
        noise_BJ = uniform_by_key(batch.keys, self.num_actions, self.seed, self.global_step)

        # GRPO samples from a policy some steps old, the others from the present one.
        old_BA = None
        if self.estimator == "grpo":
            old_BA = self._old.logits(self.head, state_BS, self.global_step)
        return policy_loss(
            self.estimator,
            logit_BA,
            reward,
            old_logit_BA=old_BA,
            uniform_BJ=noise_BJ,
            valid_B=batch.eligible_B,
        )

    def _decisions(self, logit_BA: Tensor, batch: DepthValueBatch) -> DecisionOutput:
        depths_B = logit_BA.detach().argmax(1) * batch.eligible_B
        tokens_B = batch.cost_BA.gather(1, depths_B[:, None])[:, 0]
        return DecisionOutput(depths_B, tokens_B, batch.eligible_B)

    @override
    def validation_step(self, batch: DepthValueBatch, batch_idx: int) -> StepOutput:
        logit_BA = self.head(batch.inputs.state(self.state))
        reward = reward_BA(
            batch.depth_value_BA, batch.cost_BA, clip=self.clip, token_cost=self.token_cost
        )

        decisions = self._decisions(logit_BA, batch)
        taken_R = reward.gather(1, decisions.depths_B[:, None])[:, 0][batch.eligible_B]
        self._sums.add("val/reward", taken_R.sum().item(), len(taken_R))

        # A budget is a mean over eligible queries: the others do not count in its price.
        rows = zip(batch.keys, logit_BA.tolist(), batch.cost_BA.tolist(), strict=True)
        eligible = batch.eligible_B.tolist()
        self._calibration_rows += [row for row, e in zip(rows, eligible, strict=True) if e]

        return StepOutput(decisions=decisions)

    @override
    def on_validation_epoch_end(self) -> None:
        # The calibration of an untrained gate must not stand in for that after the fit.
        if self.trainer.sanity_checking:
            self._sums.reset()
            self._calibration_rows = []
            return

        # Sums of all ranks: a rank may hold no eligible query, and so has no mean.
        self.log_dict(self._sums.compute(), sync_dist=True)
        self._sums.reset()

        # Unique by key, since a sampler may give one query to two ranks.
        rows = sorted({row[0]: row for row in gather_objects(self._calibration_rows)}.values())
        self._calibration_rows = []
        keys, logits, costs = zip(*rows, strict=True) if rows else ((), (), ())

        self._calibrated_at, self._is_calibrated = self.trainer.global_step, True
        self.calibration = BudgetCalibration.calibrate(
            torch.tensor(logits), torch.tensor(costs), keys
        )
        self._warn_if_collapsed(keys)

    def _warn_if_collapsed(self, keys: Sequence[str]) -> None:
        num_steps = num_training_steps(self.trainer)
        if num_steps is None or self.trainer.global_step < num_steps:
            return
        depth_C = self.calibration.decide(torch.tensor(self.calibration.logits), keys)
        if self.trainer.is_global_zero:
            print(collapse_warning(depth_C, [DIRECT, *self.writers]), end="")

    @override
    def configure_optimizers(self) -> Any:
        return self.optimizer(self.head.parameters())

    @override
    def on_train_end(self) -> None:
        # Other weights give other logits, with which the calibrated prices would miss the budget.
        if not self._is_calibrated:
            step = self.trainer.global_step
            when = "never" if self._calibrated_at is None else f"last at step {self._calibrated_at}"
            raise ValueError(
                f"fit ended at step {step} without the validation that calibrates the thresholds "
                f"({when}): set trainer.val_check_interval so that the last batch is validated."
            )

        if self.trainer.is_global_zero:
            backbone = load_backbone(str(self.embedder / "backbone"))
            saved = AdaptiveEmbedder(
                backbone,
                self.head,
                self.calibration,
                self.writers,
                self.state,
                self.gallery_temperature,
            )
            (folder,) = self.products("fit")
            with whole_folder(folder) as fresh:
                saved.save_pretrained(fresh)
                note_run(fresh, self.embedder)

    def products(self, stage: str) -> list[Path]:
        """Returns the gated embedder, or measured times; see `mmemb.storage.products.Producer`."""
        run = Path(self.trainer.default_root_dir)
        if stage == "fit":
            return [run / "adaptive"]
        return [run / "latency.json"] if stage == "test" and self._measured else []

    # predict

    @override
    def predict_step(
        self, batch: DepthValueBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> StepOutput:
        adaptive = self.adaptive
        logit_BA = adaptive.head(batch.inputs.state(adaptive.state))
        depths_B = adaptive.calibration.decide(logit_BA, batch.keys, self.budget, self.unit)
        depths_B = depths_B.to(batch.eligible_B.device) * batch.eligible_B
        rows = decision_rows(logit_BA, depths_B, batch)
        return StepOutput(sidecar=SidecarOutput(batch.shard, tuple(rows)))

    # test

    @override
    def test_step(self, batch: RankingBatch, batch_idx: int, dataloader_idx: int = 0) -> StepOutput:
        if batch.candidates is not None:
            embedded = embed_candidates(self.adaptive.backbone, batch.candidates)
            self._candidates.add(embedded)
            return StepOutput(candidates=embedded)
        if batch.queries is not None:
            return self._embed_queries(self.adaptive, batch.queries)
        return StepOutput()

    def _embed_queries(self, adaptive: AdaptiveEmbedder, batch: QueryBatch) -> StepOutput:
        """Embeds queries by the steps of inference, live or with the rationales of stage 1."""
        sides = [query.side for query in batch.queries]
        keys = [query.key for query in batch.queries]
        embedded = self._candidates.galleries()
        galleries = [embedded.of_query(query) for query in batch.queries]

        if self.write_during_test:
            direct = adaptive.embed(sides)
            depths_B = adaptive.decide(direct, self.budget, self.unit, keys=keys, gallery=galleries)
            encoded = adaptive.read(direct, adaptive.write(direct, depths_B))
            eligible = list(map(adaptive.can_reason, sides))
        else:
            encoded = self._read_written(adaptive, batch, keys, galleries)
            eligible = list(map(bool, batch.rationales))

        # One state is kept, by which the end of the test checks the live writer against stage 1's.
        if "prompt_state" in adaptive.state and not self._measured_states:
            prompt_states = zip(sides, batch.prompt_states, strict=True)
            self._measured_states = [
                (side, prompt_state)
                for side, prompt_state in prompt_states
                if prompt_state is not None
            ][:1]

        # Only queries that can reason are timed: the others are always embedded directly.
        reasoning = [q for q, can in zip(batch.queries, eligible, strict=True) if can]
        self._timed = fixed_sample(self._timed + reasoning)

        eligible_B = torch.tensor(eligible, dtype=torch.bool)
        return StepOutput(
            queries=QueryOutput(encoded.vectors_BD.cpu(), batch.queries),
            decisions=DecisionOutput(encoded.depths_B, encoded.tokens_B, eligible_B),
        )

    def _read_written(
        self,
        adaptive: AdaptiveEmbedder,
        batch: QueryBatch,
        keys: Sequence[str],
        galleries: Sequence[Tensor],
    ) -> Encoded:
        """Takes the steps of `encode`, but reads the rationales of stage 1 instead of writing."""
        # No rationale is written here, so a backbone that writes need not cache the prompts.
        sides = tuple(query.side for query in batch.queries)
        direct = DirectVectors(sides, adaptive.backbone.encode(sides))
        depths_B = adaptive.decide(
            direct,
            self.budget,
            self.unit,
            keys=keys,
            gallery=galleries,
            prompt_states=batch.prompt_states or (None,) * len(sides),
        )

        drafts = zip(depths_B.tolist(), batch.rationales, strict=True)
        rationales = tuple(greedy_at(adaptive.depths[number], pool) for number, pool in drafts)
        return adaptive.read(direct, Written(depths_B, rationales))

    @override
    def on_test_epoch_end(self) -> None:
        queries = fixed_sample(gather_objects(self._timed))
        if self.measure_latency and self.trainer.is_global_zero and queries:
            # The test read stored rationales; here a writer writes, so that its time counts too.
            check_prompt_state(list(self.writers.values())[-1], self._measured_states)
            measured = measure_latency(
                self.adaptive,
                [query.key for query in queries],
                [query.side for query in queries],
                [self._candidates.galleries().of_query(query) for query in queries],
                lambda rows: tqdm(rows, desc="live latency"),
            )

            rows = [to_json(latency) for latency in measured]
            write_json(Path(self.trainer.default_root_dir) / "latency.json", {"queries": rows})
            self._measured = True
