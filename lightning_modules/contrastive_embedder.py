"""ContrastiveEmbedder: stage 3, one model that embeds with and without a rationale (METHOD 6).

Shapes: B rows, R of them with a rationale, D embedding width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, final

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import nn
from typing_extensions import override

from lightning_modules.backbone_module import BackboneModule
from mmemb.backbones import Backbone, GenerativeBackbone
from mmemb.llm.lora import LoraSettings
from mmemb.losses.distillation import distillation_loss
from mmemb.losses.terms import LossTerm, combine
from mmemb.media.loggers import log_text
from mmemb.records.batches import (
    CandidateBatch,
    CandidateOutput,
    PairBatch,
    QueryBatch,
    QueryOutput,
    SidecarOutput,
    TaskEnd,
)
from mmemb.records.rationales import DIRECT, FULL, drafts_at
from mmemb.retrieval.depth_values import embedding_rows, guard_facts, utility_rows
from mmemb.retrieval.galleries import Galleries, embed_candidates
from mmemb.storage.run_marks import run_mark
from mmemb.storage.trained_facts import read_facts, trained_facts
from mmemb.training.batch_text import describe_batch
from mmemb.training.gradient_cache import GradientCache
from mmemb.training.pair_vectors import PairVectors, pair_vectors
from mmemb.training.path_losses import PathLosses


@final
class ContrastiveEmbedder(BackboneModule):
    """fit: trunk, judges and embedder; validate, test: retrieval; predict: `utilities/`.

    Args:
        backbone: what is trained; `mmemb.backbones.load_backbone` starts from an earlier run.
        reasoning_weight: weight of L_nce(h_r(q, r), t).
        direct_weight: weight `a` of L_nce(h_d(q), h_d(t)).
        cross_weight: weight of L_nce(h_r(q), h_d(t)) + L_nce(h_d(q), h_r(t)) where targets reason.
        writing_weight: weight `b` of the rationales' next-token loss, of a backbone that writes.
        detach: the next-token loss trains the head alone (`Backbone.encode_paths`).
        temperature: tau; its logarithm is trained if `learn_temperature`.
        symmetric: also target to query.
        matryoshka_dims: prefixes of the vector that are trained beside the whole one.
        false_negative_margin: targets whose cosine with a query exceeds that of its own target by
            more than this do not repel it; null = all do.
        optimizer: called with the parameter groups.
        distillation_weight: weight of the KL from a teacher's in-batch similarities, whose vectors
            the batch must have; 0 = none.
        teacher_temperature: tau of the teacher's similarities.
        lora: low-rank updates of the backbone's pretrained part, in place of all its weights.
        gradient_cache: cuts a batch into micro-batches whose graphs need not all be in memory; null
            = one forward pass for the whole batch.
        gradient_checkpointing: keeps the inputs of the backbone's layers only, runs them twice.
        compile_backend: compiles the backbone's layers, e.g. `inductor`; null = not.
        num_warmup: steps of linear warm-up.
        new_lr_scale: learning rate of the backbone's untrained parts relative to the rest.
        reason: whether test and validation embed queries with their rationale.
        export: what `predict` writes, `utilities` or `embeddings` (of the queries).
        utility_temperature: tau of the utilities that `predict` exports.
        depths: of the utilities, `direct` first; every other one needs a draft in the rationales.
        num_draws: of the utilities, how many drafts of a depth are read at most; None = all.
        fitted: predict: a run's `fitted.json`, the facts that may not be scored; null = the one of
            the run that the backbone was loaded from.
        allow_fitted: predict: score fitted facts all the same (an audit).
        cutoffs: k of the metrics that `predict` exports.
    """

    def __init__(
        self,
        backbone: Backbone,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        reasoning_weight: float = 1.0,
        direct_weight: float = 1.0,
        cross_weight: float = 0.0,
        writing_weight: float = 0.0,
        detach: bool = False,
        temperature: float = 0.05,
        learn_temperature: bool = False,
        symmetric: bool = True,
        matryoshka_dims: Sequence[int] = (),
        false_negative_margin: float | None = None,
        distillation_weight: float = 0.0,
        teacher_temperature: float = 0.05,
        lora: LoraSettings | None = None,
        gradient_cache: GradientCache | None = None,
        gradient_checkpointing: bool = False,
        compile_backend: str | None = None,
        num_warmup: int = 10,
        new_lr_scale: float = 1.0,
        reason: bool = False,
        export: Literal["utilities", "embeddings"] = "utilities",
        utility_temperature: float = 0.05,
        depths: Sequence[str] = (DIRECT, FULL),
        num_draws: int | None = None,
        fitted: str | None = None,
        allow_fitted: bool = False,
        cutoffs: Sequence[int] = (1, 5, 10),
    ) -> None:
        super().__init__(
            backbone,
            optimizer,
            num_warmup=num_warmup,
            new_lr_scale=new_lr_scale,
            lora=lora,
            gradient_cache=gradient_cache,
            gradient_checkpointing=gradient_checkpointing,
            compile_backend=compile_backend,
        )
        self.losses = PathLosses(
            direct=direct_weight,
            reasoning=reasoning_weight,
            cross=cross_weight,
            writing=writing_weight,
            symmetric=symmetric,
            false_negative_margin=false_negative_margin,
            dims=tuple(matryoshka_dims),
        )
        self.detach = detach
        if writing_weight and not isinstance(backbone, GenerativeBackbone):
            raise ValueError(
                f"writing_weight is {writing_weight}, but {type(backbone).__name__} does not "
                "write: set it to 0, or choose a VisionLanguageBackbone."
            )
        if not temperature > 0:
            raise ValueError(f"temperature {temperature}: expected a positive number")
        log_temperature = torch.tensor(math.log(temperature))
        self.log_temperature = nn.Parameter(log_temperature, requires_grad=learn_temperature)
        self.reason = reason
        self.distillation_weight = distillation_weight
        self.teacher_temperature = teacher_temperature
        if len(depths) < 2 or depths[0] != DIRECT or len(set(depths)) < len(depths):
            raise ValueError(
                f"depths {list(depths)}: expected {DIRECT!r} and then others, each once"
            )
        self.export, self.utility_temperature = export, utility_temperature
        if num_draws is not None and num_draws < 1:
            raise ValueError(f"num_draws {num_draws}: expected at least 1, or null for all")
        self.depths, self.num_draws = tuple(depths), num_draws
        if fitted:
            self.fitted_facts = read_facts(Path(fitted))
        mark = run_mark(Path(fitted).parent) if fitted else None
        self.made_by = {"embedder": mark} if mark else {}  # a gate asks whose utilities it learns
        self.allow_fitted = allow_fitted
        self.cutoffs = tuple(cutoffs)
        self._candidates: list[CandidateOutput] = []
        self._galleries: Galleries | None = None

    # fit

    @override
    def on_train_batch_start(self, batch: PairBatch, batch_idx: int) -> None:
        if self.global_step == 0 and self.trainer.is_global_zero and self.loggers:
            log_text(self.loggers, "train/first_batch", describe_batch(batch, self.backbone), 0)

    @override
    def training_step(self, batch: PairBatch, batch_idx: int) -> dict[str, Any]:
        reasons = bool(self.losses.reasoning)
        vectors = pair_vectors(
            self.backbone,
            batch,
            reasons=reasons,
            detach=self.detach,
            writes=bool(self.losses.writing),
            cache=self.gradient_cache,
        )
        found = self.losses.of(vectors, batch, self.log_temperature.exp())
        loss = sum(found.values(), torch.zeros((), device=self.device))
        scalars = {f"train/{name}_loss": value.detach() for name, value in found.items()}
        if reasons:
            shares = [float(rationale is not None) for rationale in batch.rationales]
            scalars["train/reasoning_share"] = torch.tensor(shares, device=self.device).mean()
        if self.distillation_weight:
            distillation = combine(self._distillation(vectors, batch))
            loss = loss + self.distillation_weight * distillation
            scalars["train/distillation_loss"] = distillation.detach()
        self.log_dict(scalars | {"train/loss": loss.detach()}, batch_size=len(batch.keys))
        seen = PairVectors(*(x.detach() for x in vectors))
        return {"loss": loss, "vectors": seen, "temperature": self.log_temperature.detach().exp()}

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
        self, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> CandidateOutput | QueryOutput | TaskEnd:
        match batch:
            case CandidateBatch():
                return embed_candidates(self.backbone, batch)
            case TaskEnd():
                return batch
        return self._embed_queries(batch)

    @override
    def test_step(
        self, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> CandidateOutput | QueryOutput | TaskEnd:
        return self.validation_step(batch, batch_idx, dataloader_idx)

    def _embed_queries(self, batch: QueryBatch) -> QueryOutput:
        pools = [drafts_at(self.depths[-1], rationales) for rationales in batch.rationales]
        notes = [pool[0] if pool else None for pool in pools]
        notes = notes if self.reason else [None] * len(notes)
        tokens_B = torch.tensor([note.num_tokens if note else 0 for note in notes])
        return QueryOutput(
            vectors_BD=self.backbone([query.side for query in batch.queries], notes).cpu(),
            queries=batch.queries,
            depths_B=torch.tensor([int(note is not None) for note in notes]),
            tokens_B=tokens_B,
            eligible_B=torch.tensor([bool(rationales) for rationales in batch.rationales]),
        )

    # predict

    @cached_property
    def fitted_facts(self) -> frozenset[str]:
        """Facts that may not be scored: by default those of the backbone's own folder."""
        return trained_facts(self.backbone.folder) if self.backbone.folder else frozenset()

    @override
    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> SidecarOutput:
        if dataloader_idx == 0:  # every rank embeds all candidates, so no rank waits for another
            self._candidates.append(embed_candidates(self.backbone, batch))
            return SidecarOutput("", ())  # nothing to write; Lightning warns about None
        if self.export == "embeddings":
            return SidecarOutput(batch.shard, tuple(embedding_rows(self.backbone, batch)))
        if batch_idx == 0:
            self._galleries = Galleries(self._candidates)
        if not self.allow_fitted:
            guard_facts(batch.queries, self.fitted_facts, allow_fitted=False)
        rows = utility_rows(
            self.backbone,
            batch,
            self._galleries,
            self.utility_temperature,
            self.cutoffs,
            self.depths,
            self.num_draws,
        )
        marked = tuple(replace(row, meta={**row.meta, **self.made_by}) for row in rows)
        return SidecarOutput(batch.shard, marked)
