"""One row of MMEB-V2, with the meaning of its fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, final

from mmemb.records.pairs import EvaluationTask

Modality = Literal["image", "video", "visdoc"]
MODALITIES: tuple[Modality, ...] = ("image", "video", "visdoc")

REVISIONS = ("2025-06-03", "2025-11-03")
"""Page sets of ViDoSeek and MMLongBench, by date: page numbers off by one, then corrected."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One row.

    Attributes:
        name: as in score files and reports.
        modality: the third of the benchmark that it belongs to.
        meta_task: the group whose mean is reported, `I-CLS` ... `VisDoc-OOD`.
        out_of_domain: of image tasks: no training split of its source is in MMEB-train; of
            documents: the paper's own grouping; None = not stated (video).
        layout: how its annotations are stored; a converter each.
        source: data-set repository of the annotations.
        config: the repository's config, "" = the only one.
        split: of the annotations.
        inputs: what a query holds, letters of T, I, V.
        outputs: what a candidate holds.
        query_instruction: before the query's text.
        target_instruction: of a candidate with a picture.
        num_queries: of the published score files.
        num_candidates: of a query's own list, or of the gallery; None = it varies.
        local: whether a query has a list of its own.
        metric: what counts.
        frames: of a clip, evenly spaced; None = no clips, or all frames that were saved.
        revision: of the data, where more than one is about.
        graded: whether grades above 0 differ within a query.
    """

    name: str
    modality: Modality
    meta_task: str
    layout: str
    source: str
    inputs: str
    outputs: str
    query_instruction: str
    num_queries: int
    num_candidates: int | None
    local: bool
    metric: Literal["hit@1", "ndcg_linear@5"] = "hit@1"
    config: str = ""
    split: str = "test"
    target_instruction: str = ""
    out_of_domain: bool | None = None
    frames: int | None = None
    revision: str = ""
    graded: bool = False

    @property
    def evaluation(self) -> EvaluationTask:
        """The row as our data modules take it; candidates form a gallery of the task's name."""
        return EvaluationTask(self.name, self.meta_task, self.name, self.metric)


def row(
    name: str,
    meta_task: str,
    layout: str,
    shape: str,
    query_instruction: str,
    num_queries: int,
    num_candidates: int | None,
    **fields: Any,
) -> Task:
    """One row from its columns, and other fields of `Task` by name.

    A shape such as `IT>T` names what a query holds, then what a candidate holds.
    """
    inputs, outputs = shape.split(">")
    fields |= {"query_instruction": query_instruction, "inputs": inputs, "outputs": outputs}
    fields |= {"num_queries": num_queries, "num_candidates": num_candidates}
    return Task(name=name, meta_task=meta_task, layout=layout, **fields)
