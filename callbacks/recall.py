"""RecallAtK: retrieval metrics over the whole gallery, each query once, on any number of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from mmemb.batches import CandidateOutput, QueryOutput
from mmemb.distributed import gather_objects
from mmemb.metrics import MeanSums
from mmemb.retrieval import Galleries, gather_candidates


@final
class RetrievalMeter:
    """Collects embedded candidates and queries, then ranks this rank's queries among all.

    Args:
        cutoffs: the k of recall@k and its company.
    """

    def __init__(self, cutoffs: Sequence[int]) -> None:
        self.cutoffs = tuple(cutoffs)
        self.candidates: list[CandidateOutput] = []
        self.queries: list[QueryOutput] = []

    def add(self, output: CandidateOutput | QueryOutput) -> None:
        """Takes what a validation or test step returned."""
        kept = self.candidates if isinstance(output, CandidateOutput) else self.queries
        kept.append(output)  # type: ignore[arg-type]

    def compute(self, embedding_dim: int) -> dict[str, dict[str, float]]:
        """Task (or `mean`, over tasks) -> metric -> value. Collective, and sums only: ranks may
        hold different numbers of queries, also none."""
        galleries = Galleries([gather_candidates(self.candidates, embedding_dim)])
        tasks = sorted({q.task for out in self.queries for q in out.queries})
        sums = MeanSums()
        for output in self.queries:
            found = galleries.metrics(output.vectors_BD, output.queries, self.cutoffs)
            for query, metrics in zip(output.queries, found, strict=True):
                sums.add_all(metrics, prefix=f"{query.task}/")
        return by_task(sums.compute(), sorted(set(gather_objects(tasks))))


def by_task(means: dict[str, float], tasks: Sequence[str]) -> dict[str, dict[str, float]]:
    """Splits `task/metric` names and adds the mean over tasks."""
    table: dict[str, dict[str, float]] = {task: {} for task in tasks}
    for name, value in means.items():
        task, metric = name.rsplit("/", 1)
        table[task][metric] = value
    names = {metric for row in table.values() for metric in row}
    mean = {n: sum(row[n] for row in table.values()) / len(table) for n in sorted(names)}
    return table | ({"mean": mean} if table else {})


@final
class RecallAtK(Callback):
    """Logs `split/recall@k`, hit@1 and company as means over tasks; tasks go to one text table.

    Args:
        k: cutoffs.
    """

    def __init__(self, k: Sequence[int] = (1, 5, 10)) -> None:
        self.cutoffs = tuple(k)
        self.meter = RetrievalMeter(self.cutoffs)

    @override
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.meter = RetrievalMeter(self.cutoffs)

    @override
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if isinstance(outputs, CandidateOutput | QueryOutput):
            self.meter.add(outputs)

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._log(trainer, pl_module, "val")

    @override
    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.meter = RetrievalMeter(self.cutoffs)

    @override
    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.on_validation_batch_end(*args, **kwargs)

    @override
    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log(trainer, pl_module, "test")

    def _log(self, trainer: Trainer, pl_module: LightningModule, split: str) -> None:
        table = self.meter.compute(embedding_dim_of(self.meter))
        mean = table.get("mean", {})
        shown = {f"{split}/{name}": value for name, value in mean.items() if is_headline(name)}
        pl_module.log_dict(shown, sync_dist=True)  # equal on all ranks; Lightning cannot know
        self.meter = RetrievalMeter(self.cutoffs)
        if table and trainer.is_global_zero and trainer.logger is not None:
            text = markdown_table(table)
            trainer.logger.experiment.add_text(f"{split}/tasks", text, trainer.global_step)


def is_headline(name: str) -> bool:
    """Few scalars, so that TensorBoard stays readable; the text table holds the rest."""
    return name.startswith("recall@") or name in {"hit@1", "ndcg_linear@5"}


def embedding_dim_of(meter: RetrievalMeter) -> int:
    """D; a rank without any row learns it from the others when they gather."""
    outputs = [*(o.vectors_ND for o in meter.candidates), *(o.vectors_BD for o in meter.queries)]
    dims = gather_objects([outputs[0].shape[-1]] if outputs else [])
    return dims[0] if dims else 0


def markdown_table(table: dict[str, dict[str, float]]) -> str:
    """Tasks as rows, metrics as columns, in per cent."""
    columns = [name for name in next(iter(table.values()), {}) if is_headline(name)]
    lines = ["| task | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for task, row in table.items():
        lines.append(f"| {task} | " + " | ".join(f"{100 * row[c]:.1f}" for c in columns) + " |")
    return "\n".join(lines)
