"""GatingPolicy: stage 4, which queries are worth a rationale (METHOD 7).

Shapes: B queries, S state width, A depths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, final

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from tqdm import tqdm
from typing_extensions import override

from lightning_modules.contrastive_embedder import embed_candidates
from mmemb.adaptive import AdaptiveEmbedder
from mmemb.backbones import load_backbone
from mmemb.batches import (
    CandidateOutput,
    DecisionOutput,
    QueryBatch,
    QueryOutput,
    SidecarOutput,
    SidecarRow,
    UtilityBatch,
)
from mmemb.budget import Thresholds, gate_score
from mmemb.distributed import gather_objects
from mmemb.gate_inputs import check_parts
from mmemb.gating import (
    DepthHead,
    MlpDepthHead,
    exact_loss,
    grpo_loss,
    reinforce_loss,
    reward_BA,
    supervised_loss,
    uniform_by_key,
)
from mmemb.latency import measure_latency
from mmemb.lineage import write_json
from mmemb.losses import LossTerm, combine
from mmemb.metrics import MeanSums
from mmemb.rationales import PrecomputedWorker, RationaleWorker
from mmemb.records import Query, Side, stable_hash
from mmemb.retrieval import Galleries

NUM_LATENCY_QUERIES = 32
OLD_POLICY_STEPS = 4
"""How long `grpo` samples from one policy; with 1 its clipping would never act."""

Estimator = Literal["reinforce", "exact", "grpo", "supervised"]


@final
class GatingPolicy(LightningModule):
    """fit: the gate on part `gate`, thresholds on `calibration`; predict: `decisions/`; test:
    retrieval through `AdaptiveEmbedder`, and live milliseconds of 32 fixed queries.

    Args:
        embedder: folder of the embedder's run.
        run: folder of the gate's own fit, read by predict and test.
        worker: writes rationales at inference; its settings are saved with the embedder.
        head: called with the width of the state.
        state: what the gate sees, some of `embedding`, `scores` and `probe` (`mmemb.gate_inputs`).
        temperature: tau of the scores whose shape a state with `scores` holds: the
            `utility_temperature` of the utilities.
        estimator: `reinforce` (leave-one-out baseline), `exact` (closed form), `grpo` (normalised
            within the group, clipped against a policy some steps old), or `supervised`.
        num_samples: actions per state of `reinforce`.
        price: lambda, what a token costs, in nats of utility.
        clip: c, bound on the utility difference.
        budget: upper bound on the share of eligible queries that reason; null: the gate's will.
        seed: of the actions' noise.
        measure: whether `test` measures milliseconds.
    """

    def __init__(
        self,
        embedder: str,
        run: str,
        worker: RationaleWorker,
        head: Callable[[int], DepthHead] = MlpDepthHead,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        estimator: Estimator = "reinforce",
        num_samples: int = 4,
        price: float = 0.01,
        clip: float = 3.0,
        budget: float | None = None,
        state: list[str] | None = None,
        temperature: float = 0.05,
        seed: int = 0,
        measure: bool = True,
    ) -> None:
        super().__init__()
        if budget is not None and not 0 <= budget <= 1:
            raise ValueError(f"budget {budget} is not a share between 0 and 1")
        self.embedder, self.run = Path(embedder), Path(run)
        self.worker = worker
        self.state, self.temperature = check_parts(state or ["embedding"]), temperature
        self.make_head, self.optimizer = head, optimizer
        self.estimator, self.num_samples, self.seed = estimator, num_samples, seed
        self.price, self.clip = price, clip
        self.budget, self.measure = budget, measure
        self.head: DepthHead | None = None
        self._old: tuple[DepthHead, ...] = ()
        self._scores: list[tuple[str, float]] = []
        self._sums = MeanSums()
        self._candidates: list[CandidateOutput] = []
        self._galleries = Galleries([])
        self._timed: list[Query] = []
        self._probed: list[tuple[Side, Tensor]] = []

    @override
    def setup(self, stage: str) -> None:
        if stage == "fit":
            states_NS = self.trainer.datamodule.gate_inputs().state(self.state)
            self.head = self.make_head(states_NS.shape[1])
            self.head.standardise(states_NS)
        elif stage in {"test", "predict"}:
            self.adaptive = AdaptiveEmbedder.from_pretrained(self.run / "adaptive", self.worker)

    # fit

    @override
    def training_step(self, batch: UtilityBatch, batch_idx: int) -> dict[str, Any]:
        state_BS = batch.inputs.state(self.state)
        logit_BA = self.head(state_BS)
        reward = reward_BA(batch.utility_BA, batch.cost_BA, clip=self.clip, price=self.price)
        loss = combine(self._estimate(state_BS, logit_BA, reward, batch))
        expected = (logit_BA.softmax(1) * reward).sum(1)[batch.eligible_B].mean()
        self.log_dict(
            {"train/loss": loss.detach(), "train/reward": expected.detach()},
            batch_size=len(batch.keys),
        )
        return {"loss": loss, "decisions": self._decisions(logit_BA, batch)}

    def _estimate(
        self, state_BS: Tensor, logit_BA: Tensor, reward: Tensor, batch: UtilityBatch
    ) -> LossTerm:
        if self.estimator == "exact":
            return exact_loss(logit_BA, reward, batch.eligible_B)
        if self.estimator == "supervised":
            return supervised_loss(logit_BA, reward, batch.eligible_B)
        # Noise by key and step: equal on any number of ranks, different in every step.
        noise_BJ = uniform_by_key(batch.keys, self.num_samples, self.seed + self.global_step)
        if self.estimator == "reinforce":
            return reinforce_loss(logit_BA, reward, uniform_BJ=noise_BJ, valid_B=batch.eligible_B)
        if not self._old or self.global_step % OLD_POLICY_STEPS == 0:
            self._old = (deepcopy(self.head).eval(),)  # in a tuple, so that it is no submodule
        with torch.no_grad():
            old_BA = self._old[0](state_BS)
        return grpo_loss(logit_BA, reward, old_BA, uniform_BJ=noise_BJ, valid_B=batch.eligible_B)

    def _decisions(self, logit_BA: Tensor, batch: UtilityBatch) -> DecisionOutput:
        depths_B = logit_BA.detach().argmax(1) * batch.eligible_B
        tokens_B = batch.cost_BA.gather(1, depths_B[:, None])[:, 0]
        return DecisionOutput(depths_B, tokens_B, batch.eligible_B)

    @override
    def validation_step(self, batch: UtilityBatch, batch_idx: int) -> DecisionOutput:
        logit_BA = self.head(batch.inputs.state(self.state))
        reward = reward_BA(batch.utility_BA, batch.cost_BA, clip=self.clip, price=self.price)
        decisions = self._decisions(logit_BA, batch)
        taken_B = reward.gather(1, decisions.depths_B[:, None])[:, 0][batch.eligible_B]
        self._sums.add("val/reward", taken_B.sum().item(), len(taken_B))
        scores = gate_score(logit_BA).tolist()
        rows = zip(batch.keys, scores, batch.eligible_B.tolist(), strict=True)
        self._scores.extend((key, score) for key, score, eligible in rows if eligible)
        return decisions

    @override
    def on_validation_epoch_end(self) -> None:
        # Sums: a rank may hold no eligible query. The means are equal on all of them.
        self.log_dict(self._sums.compute(), sync_dist=True)
        self._sums.reset()
        ranked = sorted(set(gather_objects(self._scores)))
        self._scores = []
        keys, scores = [key for key, _ in ranked], [score for _, score in ranked]
        self.thresholds = Thresholds.calibrate(torch.tensor(scores), keys)

    @override
    def configure_optimizers(self) -> Any:
        return self.optimizer(self.head.parameters())

    @override
    def on_train_end(self) -> None:
        if self.trainer.is_global_zero:
            backbone = load_backbone(str(self.embedder / "backbone"))
            saved = AdaptiveEmbedder(
                backbone, self.head, self.thresholds, self.worker, self.state, self.temperature
            )
            saved.save_pretrained(Path(self.trainer.default_root_dir) / "adaptive")

    # predict

    @override
    def predict_step(
        self, batch: UtilityBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> SidecarOutput:
        adaptive = self.adaptive
        logit_BA = adaptive.head(batch.inputs.state(adaptive.state))
        score_B = gate_score(logit_BA)
        open_B = adaptive.thresholds.decide(score_B, batch.keys, self.budget) & batch.eligible_B
        cost_B = batch.cost_BA.gather(1, open_B.long()[:, None])[:, 0]
        rows = []
        for row, key in enumerate(batch.keys):
            decision = {
                "depth": int(open_B[row]),
                "probability": round(float(logit_BA[row].softmax(0)[-1]), 6),
                "score": round(float(score_B[row]), 6),
                "cost": float(cost_B[row]),
            }
            rows.append(SidecarRow(key, {"json": decision}, batch.metas[row]))
        return SidecarOutput(batch.shard, tuple(rows))

    # test

    @override
    def test_step(
        self, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> CandidateOutput | QueryOutput:
        adaptive = self.adaptive
        if dataloader_idx == 0:
            self._candidates.append(embed_candidates(adaptive.backbone, batch))
            return self._candidates[-1]
        if batch_idx == 0:
            self._galleries = Galleries(self._candidates)
        return self._embed_queries(adaptive, batch)

    def _embed_queries(self, adaptive: AdaptiveEmbedder, batch: QueryBatch) -> QueryOutput:
        """The path of inference, with the rationales that stage 1 wrote instead of new ones."""
        sides = [query.side for query in batch.queries]
        adaptive.worker = PrecomputedWorker.over(
            sides, batch.rationales, self.worker.reads, batch.probes
        )
        keys = [query.key for query in batch.queries]
        shown = [self._galleries.of_query(query) for query in batch.queries]
        encoded = adaptive.encode(sides, self.budget, keys=keys, gallery=shown)
        eligible_B = torch.tensor([bool(rationales) for rationales in batch.rationales])
        if "probe" in adaptive.state:
            probes = zip(sides, batch.probes, strict=True)
            self._probed = self._probed or [(s, p) for s, p in probes if p is not None][:1]
        reasoning = [q for q, e in zip(batch.queries, eligible_B.tolist(), strict=True) if e]
        self._timed = fixed_sample(self._timed + reasoning)
        return QueryOutput(
            encoded.vectors_BD.cpu(), batch.queries, encoded.depths_B, encoded.tokens_B, eligible_B
        )

    @override
    def on_test_epoch_end(self) -> None:
        queries = fixed_sample(gather_objects(self._timed))
        if self.measure and self.trainer.is_global_zero and queries:
            adaptive = self.adaptive
            adaptive.worker = self.worker
            check_probe(self.worker, self._probed)
            measured = measure_latency(
                adaptive,
                [query.key for query in queries],
                [query.side for query in queries],
                [self._galleries.of_query(query) for query in queries],
                lambda rows: tqdm(rows, desc="live latency"),
            )
            rows = [asdict(latency) for latency in measured]
            write_json(Path(self.trainer.default_root_dir) / "latency.json", {"queries": rows})


def check_probe(worker: RationaleWorker, probed: Sequence[tuple[Side, Tensor]]) -> None:
    """Raises ValueError if the live worker's hidden states are not those that the gate learned."""
    for side, known_H in probed:
        live_H = worker.probe([side])[0].cpu()
        if live_H.shape != known_H.shape or (live_H - known_H).abs().max() > 0.02 * known_H.std():
            raise ValueError(
                f"The gate's worker {worker.name!r} has another hidden state about {side.text!r} "
                "than `rationales/` holds: give the gate the model, prompt and probe_layer that "
                "wrote them."
            )


def fixed_sample(queries: list[Query]) -> list[Query]:
    """The 32 queries with the smallest hash of their key: the same ones in every run."""
    ranked = sorted(queries, key=lambda query: stable_hash("latency", query.key))
    return ranked[:NUM_LATENCY_QUERIES]
