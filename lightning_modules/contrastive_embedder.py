"""ContrastiveEmbedder: stage 3, one model that embeds with and without a rationale.

docs/method.md section 6. Shapes: B rows, R of them with a rationale, D embedding width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, final

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import nn
from typing_extensions import override

from lightning_modules.backbone_module import BackboneModule
from mmemb.backbones import Backbone, GenerativeBackbone
from mmemb.backbones.text_lengths import cut_texts
from mmemb.distributed import mean_over_ranks
from mmemb.llm.lora import LoraSettings
from mmemb.losses.distillation import distillation_loss
from mmemb.losses.terms import combine
from mmemb.media.loggers import log_text
from mmemb.records.batches import PairBatch, QueryBatch, RankingBatch
from mmemb.records.inputs import Side
from mmemb.records.loss_term import LossTerm
from mmemb.records.outputs import (
    DecisionOutput,
    PairOutput,
    QueryOutput,
    StepOutput,
)
from mmemb.records.rationales import FULL, drafts_at
from mmemb.retrieval.galleries import embed_candidates
from mmemb.training.batch_text import describe_batch
from mmemb.training.gradient_cache import GradientCache
from mmemb.training.pair_vectors import PairVectors, pair_vectors
from mmemb.training.path_losses import PathLosses

LOSSES = PathLosses()


@final
class ContrastiveEmbedder(BackboneModule):
    """fit: trunk, judges and embedder; validate, test: retrieval.

    Args:
        backbone: the embedder; `mmemb.backbones.load_backbone` starts from an earlier run.
        losses: weights of the losses, and how their candidates are treated.
        detach_next_token: the next-token loss trains the head alone (`Backbone.encode_paths`).
        loss_temperature: tau; its logarithm is trained if `learn_temperature`.
        optimizer: called with the parameter groups.
        distillation_weight: weight of the KL from a teacher's in-batch similarities, whose vectors
            the batch must have; 0 = none.
        teacher_temperature: tau of the teacher's similarities.
        lora: low-rank updates of the backbone's pretrained part, in place of all its weights.
        gradient_cache: cuts a batch into micro-batches whose graphs need not all be in memory; null
            = one forward pass for the whole batch.
        gradient_checkpointing: keeps the inputs of the backbone's layers only, runs them twice.
        compile_backend: compiles the backbone's layers, e.g. `inductor`; null = not.
        num_warmup_steps: steps of linear warm-up.
        new_parameters_lr_scale: learning rate of the backbone's untrained parts, relative to that
            of the rest.
        eval_with_rationales: validation and test read a query with its first draft at depth `full`.
    """

    def __init__(
        self,
        backbone: Backbone,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        losses: PathLosses = LOSSES,
        detach_next_token: bool = False,
        loss_temperature: float = 0.05,
        learn_temperature: bool = False,
        distillation_weight: float = 0.0,
        teacher_temperature: float = 0.05,
        lora: LoraSettings | None = None,
        gradient_cache: GradientCache | None = None,
        gradient_checkpointing: bool = False,
        compile_backend: str | None = None,
        num_warmup_steps: int = 10,
        new_parameters_lr_scale: float = 1.0,
        eval_with_rationales: bool = False,
    ) -> None:
        super().__init__(
            backbone,
            optimizer,
            num_warmup_steps=num_warmup_steps,
            new_parameters_lr_scale=new_parameters_lr_scale,
            lora=lora,
            gradient_cache=gradient_cache,
            gradient_checkpointing=gradient_checkpointing,
            compile_backend=compile_backend,
        )
        if losses.next_token and not isinstance(backbone, GenerativeBackbone):
            raise ValueError(
                f"losses.next_token is {losses.next_token}, but {type(backbone).__name__} does not "
                "write: set it to 0, or choose a VisionLanguageBackbone."
            )
        if not loss_temperature > 0:
            raise ValueError(f"loss_temperature {loss_temperature}: expected a positive number")
        self.losses, self.detach_next_token = losses, detach_next_token

        # By its logarithm, so that no step of the optimiser can make it negative.
        log_temperature = torch.tensor(math.log(loss_temperature))
        self.log_temperature = nn.Parameter(log_temperature, requires_grad=learn_temperature)
        self.distillation_weight = distillation_weight
        self.teacher_temperature = teacher_temperature
        self.eval_with_rationales = eval_with_rationales

    # fit

    @override
    def on_train_batch_start(self, batch: PairBatch, batch_idx: int) -> None:
        # One batch as text, so that a person sees what the model is trained on.
        if self.global_step == 0 and self.trainer.is_global_zero and self.loggers:
            log_text(self.loggers, "train/first_batch", describe_batch(batch, self.backbone), 0)

        if batch_idx == 0:
            self._tell_cuts(batch.queries, "queries")
            self._tell_cuts(batch.targets, "targets")

    @override
    def training_step(self, batch: PairBatch, batch_idx: int) -> dict[str, Any]:
        # By the weights alone, not by the batch: all ranks must run the same collectives.
        reasons = bool(self.losses.reasoned)
        vectors = pair_vectors(
            self.backbone,
            batch,
            reasons=reasons,
            detach=self.detach_next_token,
            writes=bool(self.losses.next_token),
            cache=self.gradient_cache,
        )

        losses = self.losses.compute(vectors, batch, self.log_temperature.exp())
        loss = sum(losses.values(), torch.zeros((), device=self.device))
        scalars = {f"train/{name}_loss": value.detach() for name, value in losses.items()}

        if reasons:
            shares = [float(rationale is not None) for rationale in batch.rationales]
            scalars["train/rationale_fraction"] = torch.tensor(shares, device=self.device).mean()

        if self.distillation_weight:
            distillation = combine(self._distillation(vectors, batch))
            loss = loss + self.distillation_weight * distillation
            scalars["train/distillation_loss"] = distillation.detach()

        # A rank's loss is of its own queries, so the loss of the batch is the mean over ranks.
        means = mean_over_ranks(scalars | {"train/loss": loss})
        self.log_dict(means, batch_size=len(batch.keys))

        temperature = self.log_temperature.detach().exp()
        pairs = PairOutput(vectors.query_BD.detach(), vectors.target_BD.detach(), temperature)
        return StepOutput(loss=loss, pairs=pairs).as_mapping()

    def _distillation(self, vectors: PairVectors, batch: PairBatch) -> LossTerm:
        if batch.teacher_B2E is None:
            raise ValueError(
                "distillation_weight is set, but the batch has no teacher's vectors: set "
                "data.teacher to a folder that TeacherEmbedder wrote, or distillation_weight to 0."
            )

        return distillation_loss(
            vectors.query_BD,
            vectors.target_BD,
            teacher_query_BE=batch.teacher_B2E[:, 0],
            teacher_target_BE=batch.teacher_B2E[:, 1],
            temperature=self.log_temperature.exp(),
            teacher_temperature=self.teacher_temperature,
            symmetric=self.losses.symmetric,
        )

    # validate and test

    @override
    def validation_step(
        self, batch: RankingBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> StepOutput:
        if batch.candidates is not None:
            return StepOutput(candidates=embed_candidates(self.backbone, batch.candidates))
        if batch.queries is not None:
            return self._embed_queries(batch.queries)
        return StepOutput()

    @override
    def on_test_batch_start(
        self, batch: RankingBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if batch_idx == 0 and batch.candidates is not None:
            candidates = batch.candidates.candidates
            self._tell_cuts([candidate.side for candidate in candidates], "candidates")
        if batch_idx == 0 and batch.queries is not None:
            self._tell_cuts([query.side for query in batch.queries.queries], "queries")

    def _tell_cuts(self, sides: Sequence[Side], what: str) -> None:
        """Says what share of the first batch's texts is cut, which nothing else would show."""
        if self.trainer.is_global_zero and (line := cut_texts(self.backbone, sides, what)):
            self.print(f"note: {line}")

    @override
    def test_step(self, batch: RankingBatch, batch_idx: int, dataloader_idx: int = 0) -> StepOutput:
        return self.validation_step(batch, batch_idx, dataloader_idx)

    def _embed_queries(self, batch: QueryBatch) -> StepOutput:
        # Draft 0 is the greedy one: a test must not depend on a seed.
        pools = [drafts_at(FULL, rationales) for rationales in batch.rationales]
        rationales = [pool[0] if pool else None for pool in pools]
        rationales = rationales if self.eval_with_rationales else [None] * len(rationales)

        vectors_BD = self.backbone([query.side for query in batch.queries], rationales).cpu()
        decisions = DecisionOutput(
            depths_B=torch.tensor([int(rationale is not None) for rationale in rationales]),
            tokens_B=torch.tensor(
                [rationale.num_tokens if rationale else 0 for rationale in rationales]
            ),
            eligible_B=torch.tensor([bool(rationales) for rationales in batch.rationales]),
        )
        return StepOutput(queries=QueryOutput(vectors_BD, batch.queries), decisions=decisions)
