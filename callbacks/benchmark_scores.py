"""BenchmarkScores: score files of a benchmark, task by task, while it is being embedded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import torch
from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from callbacks.folder_writer import FolderWriter
from callbacks.recall import RetrievalMeter, embedding_dim_of
from mmemb.benchmarks.headline import headline_text
from mmemb.benchmarks.score_files import (
    SCORE,
    read_scores,
    scored_under,
    task_file,
    write_embeddings,
    write_scores,
)
from mmemb.benchmarks.task_scores import Mode, TaskScores, score_embeddings
from mmemb.distributed import gather_objects, gather_ragged
from mmemb.records.batches import RankingBatch, TaskEnd
from mmemb.records.counted_nouns import counted
from mmemb.records.file_names import check_apart
from mmemb.records.inputs import Side
from mmemb.records.outputs import step_output
from mmemb.records.pairs import EvaluationTask, Query
from mmemb.retrieval.galleries import Galleries
from mmemb.storage.protocols import BenchmarkData, require
from mmemb.storage.provenance import git_state


@final
class BenchmarkScores(FolderWriter):
    """Writes `<folder>/<root>/<task>_score.json` and its company when a root's `TaskEnd` comes.

    Roots that are scored under the same fingerprint are not embedded again. Only one run writes
    a folder at a time. A development run (`fast_dev_run`) writes nothing.

    Args:
        folder: folder of the files, e.g. `runs/mmeb_v2/scores`.
        mode: `correct`, or `reference`: what the published evaluator computes.
        embeddings: keep the vectors, too, for `python -m experiments.score`.
    """

    def __init__(self, folder: str, mode: Mode = "correct", embeddings: bool = False) -> None:
        super().__init__(folder)
        self.mode, self.embeddings = mode, embeddings
        self._meter = RetrievalMeter()
        self._files: list[Path] = []

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "test":
            return
        if not trainer.fast_dev_run:
            self.lock(trainer)

        # Roots that are scored already are not embedded again.
        data = require(trainer.datamodule, BenchmarkData, "BenchmarkScores")  # type: ignore[attr-defined]
        roots = data.roots()
        for path, tasks in roots.items():
            check_apart(tasks, f"{self.folder / path}")
        pending = [
            path
            for path, tasks in roots.items()
            if not scored_under(self.folder / path, tasks, self.fingerprint)
        ]
        trainer.strategy.barrier()  # no rank writes before all have seen the same holes
        data.pending_roots = pending

        self._files = [
            task_file(self.folder / path, task, SCORE)
            for path, tasks in roots.items()
            for task in tasks
        ]
        if trainer.is_global_zero:
            scored = counted(len(roots) - len(pending), "root")
            print(f"{self.folder}: {scored} scored, {len(pending)} to do")

    @override
    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: RankingBatch,
        *_: Any,
    ) -> None:
        output = step_output(outputs)
        if output.queries is not None:
            light = tuple(map(_light, output.queries.queries))
            output = output._replace(queries=replace(output.queries, queries=light))
        self._meter.add(output)

        # Read off the batch: a module that does not hand it on would leave a root without scores.
        if batch.end is not None:
            self._finish(trainer, batch.end)

    @override
    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run:
            return
        print(headline_text(read_scores(self.folder)))

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.release()

    def products(self, stage: str) -> list[Path]:
        """The score files of all roots; see `mmemb.storage.products.Producer`."""
        return self._files if stage == "test" else []

    def _finish(self, trainer: Trainer, end: TaskEnd) -> None:
        """Gathers the vectors of a root from all ranks, so that they fail alike, and scores it."""
        dim = embedding_dim_of(self._meter)
        galleries = self._meter.galleries(dim)
        outputs = self._meter.queries

        # A rank may have embedded no query.
        vectors_QD = torch.cat([torch.zeros(0, dim), *(o.vectors_BD for o in outputs)])
        vectors_QD = gather_ragged(vectors_QD)
        queries = gather_objects([query for o in outputs for query in o.queries])
        skipped = gather_objects(list(end.skipped))
        # Emptied here, since the next root begins with the next batch.
        self._meter = RetrievalMeter()

        provenance = {"run": self.fingerprint, **end.data}

        provenance["code"] = git_state(Path(__file__).parent)[0]
        for task in end.tasks:
            # Sorted by key, so that score files do not depend on the number of ranks.
            rows = [n for n, query in enumerate(queries) if query.task == task.name]
            rows.sort(key=lambda n: queries[n].key)
            ordered = [queries[row] for row in rows]
            scores = score_task(task, ordered, vectors_QD[rows], galleries, self.mode)

            # Every rank scores, since any of them may find a fault; one writes.
            if trainer.is_global_zero and not trainer.fast_dev_run:
                folder = self.folder / end.root
                if self.embeddings:
                    names = [name for _, name in galleries.places(task.gallery)]
                    vectors = vectors_QD[rows], galleries.vectors(task.gallery)
                    content = end.data.get("content", "")
                    write_embeddings(folder, task.name, *vectors, names, content)

                partial = f"{len(skipped)} skipped: {skipped[0]}" if skipped else ""
                write_scores(folder, scores, ordered, provenance, task.meta_task, partial)
                print(f"{task.name:<48} {task.metric:<14} {100 * scores.means[task.metric]:6.2f}")


def score_task(
    task: EvaluationTask,
    queries: Sequence[Query],
    vectors_QD: torch.Tensor,
    galleries: Galleries,
    mode: Mode,
) -> TaskScores:
    """Scores the queries of one task among the candidates of its gallery."""
    if not queries:
        raise ValueError(f"{task.name}: no query could be read, so there is nothing to score.")

    # A task ranks one gallery, so the first query names that of all.
    gallery = queries[0].gallery
    names = [name for _, name in galleries.places(gallery)]
    lists = galleries.own_lists(queries)
    candidates = galleries.vectors(gallery)

    return score_embeddings(
        task.name, task.metric, queries, vectors_QD, names, candidates, lists, mode
    )


def _light(query: Query) -> Query:
    """Returns the query without pixels, which scoring does not need; the digests stay."""
    media = tuple(replace(m, pixels=None, features=None) for m in query.side.media)
    return replace(query, side=Side(query.side.text, query.side.instruction, media))
