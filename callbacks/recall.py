"""RecallAtK: retrieval metrics over the whole gallery, each query once, on any number of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

from lightning.pytorch import Callback, LightningModule, Trainer
from msgspec.structs import replace
from typing_extensions import override

from callbacks.top_candidates import NUM_CANDIDATES, TopCandidates, TopRow
from mmemb.distributed import gather_objects
from mmemb.media.loggers import log_figure, log_text
from mmemb.records.outputs import CandidateOutput, QueryOutput, StepOutput, step_output
from mmemb.records.ranked_queries import RankedQueries, RankedQuery
from mmemb.records.schema import to_json
from mmemb.retrieval.galleries import Galleries, gather_candidates
from mmemb.retrieval.running_means import MeanSums
from mmemb.storage.files import write_atomically
from mmemb.storage.json_files import canonical_json
from mmemb.storage.run_folder import RunFolder

NUM_FOUND = 5
"""Best candidates that a test names beside each query."""


@final
class RetrievalMeter:
    """Collects embedded candidates and queries, then ranks this rank's queries among all."""

    def __init__(self) -> None:
        self.candidates: list[CandidateOutput] = []
        self.queries: list[QueryOutput] = []

    def add(self, output: StepOutput) -> None:
        """Keeps the output of a validation or test step."""
        if output.candidates is not None:
            self.candidates.append(output.candidates)
        if output.queries is not None:
            self.queries.append(output.queries)

    def galleries(self, embedding_dim: int) -> Galleries:
        """The candidates of all ranks. Collective."""
        return Galleries([gather_candidates(self.candidates, embedding_dim)])

    def ranked(
        self, galleries: Galleries, cutoffs: Sequence[int], num_found: int = 0
    ) -> list[RankedQuery]:
        """This rank's queries with their ranks and metrics.

        Args:
            galleries: of all ranks.
            cutoffs: the k of recall@k and its company.
            num_found: best candidates that are named beside each query.
        """
        return [
            query
            for output in self.queries
            for query in galleries.ranked(output.vectors_BD, output.queries, cutoffs, num_found)
        ]

    def first_of_each_task(self, galleries: Galleries) -> list[TopRow]:
        """The query with the smallest key of each task, whatever the ranks hold. Collective."""
        places = [
            (q.task, q.key, n, b)
            for n, o in enumerate(self.queries)
            for b, q in enumerate(o.queries)
        ]

        # Sorted backwards, so that the smallest key of a task is the one that stays.
        top = []
        for task, key, n, b in {place[0]: place for place in sorted(places, reverse=True)}.values():
            output, query = self.queries[n], self.queries[n].queries[b]
            names = galleries.best(output.vectors_BD[b : b + 1], [query], NUM_CANDIDATES)[0]
            right = tuple(name in query.relevance for name in names)
            top.append(TopRow(task, key, query.side.text, query.gallery, names, right))

        every = sorted(gather_objects(top), key=lambda row: (row.task, row.key), reverse=True)
        return sorted({row.task: row for row in every}.values(), key=lambda row: row.task)


def task_means(queries: Sequence[RankedQuery]) -> dict[str, dict[str, float]]:
    """Task (or `mean`, over tasks) -> metric -> value. Collective, and sums only: ranks may hold
    different numbers of queries, also none."""
    sums = MeanSums()
    for query in queries:
        sums.add_all(dict(query.metrics), prefix=f"{query.task}/")

    # A rank that holds no query of a task still has to list it.
    tasks = gather_objects(sorted({query.task for query in queries}))
    return by_task(sums.compute(), sorted(set(tasks)))


def by_task(means: dict[str, float], tasks: Sequence[str]) -> dict[str, dict[str, float]]:
    """Splits `task/metric` names and adds the mean over tasks."""
    table: dict[str, dict[str, float]] = {task: {} for task in tasks}
    for name, value in means.items():
        # From the right: a task's name may hold a slash, a metric's does not.
        task, metric = name.rsplit("/", 1)
        table[task][metric] = value
    names = {metric for row in table.values() for metric in row}
    mean = {n: sum(row[n] for row in table.values()) / len(table) for n in sorted(names)}
    return table | ({"mean": mean} if table else {})


@final
class RecallAtK(Callback):
    """Logs `split/recall@k`, hit@1 and company as means over tasks; tasks go to one text table.

    `split/chance@k` is what Recall@k would be if the same candidates came in random order. A
    recorded test leaves every query's rank in `ranks.json`, for the report.

    Args:
        k: cutoffs.
        root: the data set; given, the first query of each task is drawn with its best candidates.
    """

    def __init__(self, k: Sequence[int] = (1, 5, 10), root: str | None = None) -> None:
        self.cutoffs, self.root = tuple(k), root
        self.meter = RetrievalMeter()
        self._written: list[Path] = []

    @override
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.meter = RetrievalMeter()

    @override
    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any
    ) -> None:
        self.meter.add(step_output(outputs))

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._log(trainer, pl_module, "val")

    # The batches of a test are collected like those of a validation.
    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_validation_batch_end

    @override
    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write_ranks(trainer, self._log(trainer, pl_module, "test", NUM_FOUND))

    def products(self, stage: str) -> list[Path]:
        """The ranks of a test; see `mmemb.storage.products.Producer`."""
        return self._written if stage == "test" else []

    def _write_ranks(self, trainer: Trainer, ranked: Sequence[RankedQuery]) -> None:
        kept = [
            replace(row, metrics={n: v for n, v in row.metrics.items() if is_headline(n)})
            for row in ranked
        ]
        # By key, so that the file does not depend on the number of ranks.
        every = sorted(gather_objects(kept), key=lambda row: row.key)

        # Only into the folder of a recorded run: any other trainer's may be the working directory.
        run = RunFolder(Path(trainer.default_root_dir))
        is_recorded = run.mark.is_file() and not trainer.fast_dev_run
        if trainer.is_global_zero and every and is_recorded:
            text = canonical_json(to_json(RankedQueries(tuple(every))))
            write_atomically(run.ranks, text.encode())
            self._written = [run.ranks]

    def _log(
        self, trainer: Trainer, pl_module: LightningModule, split: str, num_found: int = 0
    ) -> list[RankedQuery]:
        galleries = self.meter.galleries(embedding_dim_of(self.meter))
        ranked = self.meter.ranked(galleries, self.cutoffs, num_found)
        table = task_means(ranked)
        mean = table.get("mean", {})
        headlines = {f"{split}/{name}": value for name, value in mean.items() if is_headline(name)}
        pl_module.log_dict(headlines, sync_dist=True)  # equal on all ranks, or Lightning warns

        # Collective, so on every rank, whether it writes or not.
        rows = self.meter.first_of_each_task(galleries) if self.root is not None else []
        self.meter = RetrievalMeter()
        if not table or not trainer.is_global_zero:
            return ranked

        step = trainer.global_step
        log_text(trainer.loggers, f"{split}/tasks", markdown_table(table), step)
        if rows and self.root is not None:
            pictures = Path(self.root)
            log_figure(
                trainer.loggers,
                f"{split}/best_candidates",
                lambda: TopCandidates(pictures).figure(rows),
                step,
            )
        return ranked


def is_headline(name: str) -> bool:
    """Returns True for the few scalars that keep TensorBoard readable; a table holds the rest."""
    return name.startswith(("recall@", "chance@")) or name in {"hit@1", "ndcg_linear@5"}


def embedding_dim_of(meter: RetrievalMeter) -> int:
    """Returns D; a rank without any row takes it from the others. Collective."""
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
