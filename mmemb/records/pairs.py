"""Records of data: pairs to train on, queries and candidates to rank, and tasks.

See docs/method.md section 3 for the splits and for who may judge whom.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from mmemb.records.inputs import Side
from mmemb.records.schema import Schema

SPLITS = ("train", "val", "gate", "calibration", "test")
"""Data splits, which decide who may judge whom."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A training pair.

    Attributes:
        key: sample id, unique in the data set.
        concept: the unit of splits and of bootstrap clusters (`country:fr`).
        fact: the fact that a model learns from this pair (`country:fr/capital`).
        source: candidate space; a homogeneous group of a batch comes from one.
        target_name: name of the target in `gallery`; equal names are the same target.
        positives: names of every right target, `target_name` among them.
        answers: texts that name the target; used for scoring reports only, never as input.
        gallery: the candidates among which a judge ranks the target.
    """

    key: str
    task: str
    split: str
    concept: str
    fact: str
    source: str
    gallery: str
    query: Side
    target: Side
    target_name: str
    positives: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Query:
    """An evaluation query; `relevance` maps candidate names to grades above 0.

    `candidates` is the local candidate list (row numbers in the candidate table), or None for
    the whole gallery of the task.
    """

    key: str
    task: str
    split: str
    concept: str
    fact: str
    side: Side
    relevance: Mapping[str, float]
    answers: tuple[str, ...] = ()
    candidates: tuple[int, ...] | None = None
    gallery: str = ""
    seen_answer: bool = False


@dataclass(frozen=True, slots=True)
class Candidate:
    """One row of the candidate table; its name is its identity within its gallery."""

    key: str
    name: str
    gallery: str
    side: Side


@final
class EvaluationTask(Schema):
    """One row of the benchmark.

    Attributes:
        meta_task: MMEB-V2's family: `I-CLS`, `I-QA`, `I-RET`, `V-RET`, `VisDoc`, ...
        metric: the headline metric, `hit@1` or `ndcg_linear@5`.
        origin: `R`, real as shipped, or `D`, derived by us.
        think: whether a rationale was expected, beforehand, to carry information.
        seen_answer: the task's answers may have been trained on (names, mixed rows); without it
            scoring a fitted fact is an error.
    """

    name: str
    meta_task: str
    gallery: str
    metric: str = "hit@1"
    origin: str = "R"
    think: bool = False
    seen_answer: bool = False
