"""DepthValueExporter: value and cost of every reasoning depth, docs/method.md section 7."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import final

from lightning.pytorch import LightningModule
from typing_extensions import override

from mmemb.backbones import Backbone
from mmemb.records.batches import RankingBatch
from mmemb.records.outputs import SidecarOutput, StepOutput
from mmemb.records.rationales import DIRECT, FULL
from mmemb.retrieval.depth_values import depth_value_rows, guard_facts
from mmemb.retrieval.galleries import GalleryCollector, embed_candidates
from mmemb.storage.run_marks import run_mark
from mmemb.storage.trained_facts import read_facts, trained_facts


@final
class DepthValueExporter(LightningModule):
    """predict: `depth_values/`, from which a gate learns and the report computes its tables.

    Args:
        backbone: the embedder that is measured.
        gallery_temperature: tau of the softmax over a query's gallery.
        depths: names of the depths, `direct` first; each other one needs a draft in the rationales.
        num_draws: drafts of a depth that are read at most; null = all.
        trained_facts: `fitted.json` of a run, the facts that may not be scored; null = those of the
            run that the backbone was loaded from.
        allow_trained_facts: scores these facts, too, for an audit.
        cutoffs: k of the metrics.

    Raises:
        ValueError: `depths` or `num_draws` cannot be measured.
    """

    def __init__(
        self,
        backbone: Backbone,
        gallery_temperature: float = 0.05,
        depths: Sequence[str] = (DIRECT, FULL),
        num_draws: int | None = None,
        trained_facts: str | None = None,
        allow_trained_facts: bool = False,
        cutoffs: Sequence[int] = (1, 5, 10),
    ) -> None:
        super().__init__()
        if len(depths) < 2 or depths[0] != DIRECT or len(set(depths)) < len(depths):
            raise ValueError(
                f"depths {list(depths)}: expected {DIRECT!r} and then others, each once"
            )
        if num_draws is not None and num_draws < 1:
            raise ValueError(f"num_draws {num_draws}: expected at least 1, or null for all")
        self.backbone, self.gallery_temperature = backbone, gallery_temperature
        self.depths, self.num_draws, self.cutoffs = tuple(depths), num_draws, tuple(cutoffs)

        self.allow_trained_facts = allow_trained_facts
        if trained_facts:
            self.trained_facts = read_facts(Path(trained_facts))

        # A gate refuses depth values that were measured with another embedder than its own.
        mark = run_mark(Path(trained_facts).parent) if trained_facts else None
        self.made_by = {"embedder": mark} if mark else {}

        self._candidates = GalleryCollector()

    @cached_property
    def trained_facts(self) -> frozenset[str]:
        """Facts that may not be scored: by default those of the backbone's own folder."""
        return trained_facts(self.backbone.folder) if self.backbone.folder else frozenset()

    @override
    def predict_step(
        self, batch: RankingBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> StepOutput:
        # Every rank embeds all candidates, so that none waits for another.
        if batch.candidates is not None:
            self._candidates.add(embed_candidates(self.backbone, batch.candidates))
        if batch.queries is None:
            return StepOutput()

        # On trained facts reasoning looks harmful, and a gate would learn the wrong sign.
        if not self.allow_trained_facts:
            guard_facts(batch.queries.queries, self.trained_facts)

        rows = depth_value_rows(
            self.backbone,
            batch.queries,
            self._candidates.galleries(),
            self.gallery_temperature,
            self.cutoffs,
            self.depths,
            self.num_draws,
        )
        marked = tuple(replace(row, meta={**row.meta, **self.made_by}) for row in rows)
        return StepOutput(sidecar=SidecarOutput(batch.queries.shard, marked))
