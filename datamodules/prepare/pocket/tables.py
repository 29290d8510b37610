"""Small tables beside the shards: facts for scoring, few-shot countries, row counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from datamodules.prepare.pocket.countries import Country
from datamodules.prepare.pocket.flags import Flags
from datamodules.prepare.pocket.full_tasks import TASKS
from datamodules.prepare.pocket.rows import PairRow, QueryRow, Rows
from datamodules.prepare.pocket.tasks import NAME_TEMPLATE
from mmemb.records.pairs import SPLITS, EvaluationTask


def fact_table(
    countries: Sequence[Country], flags: Flags | None, queries: Iterable[QueryRow]
) -> dict[str, Any]:
    """Table of facts: the facts of every country, and for each question text its country.

    It serves the table writer (an upper bound, marked as one) and scoring, never training.
    """
    split_of = flags.split.split_of if flags else {}
    rows = {c.code: c.facts() | {"split": split_of.get(c.concept, "")} for c in countries}

    # A text with a picture has another answer for each picture.
    code_of = {
        q.text: q.concept.removeprefix("country:")
        for q in queries
        if q.text and not q.image and q.concept.startswith("country:")
    }

    for question in flags.text_questions if flags else ():
        code_of |= {question.text(clue): c.code for c, clue in flags.clues(question)}  # type: ignore[union-attr]
    return {"countries": rows, "questions": dict(sorted(code_of.items()))}


def few_shot_table(flags: Flags | None) -> dict[str, Any]:
    """Countries that a few-shot prompt may name: those of `train`, without val."""
    train = [c for c in flags.shown if flags.split_of(c) == "train"] if flags else []
    return {c.concept: {"name": c.name, "capital": c.capital} for c in train}


def label_table(pairs: Iterable[PairRow]) -> list[dict[str, str]]:
    """Texts by which training pairs ask for pictures: the words of a `LabelBridge`."""
    # The plain template only: other wordings are variants of the same name.
    start = NAME_TEMPLATE.split("{}")[0]
    named = {
        pair.text: pair.instruction
        for pair in pairs
        if pair.task == "emoji-t2i" or (pair.task == "flag-name" and pair.text.startswith(start))
    }
    return [{"text": text, "instruction": named[text]} for text in sorted(named)]


def count_table(rows: Rows) -> dict[str, dict[str, int]]:
    """Task -> split -> rows; `train` counts training pairs."""
    counts = Counter((row.task, "train") for row in rows.plain + rows.questions)
    counts += Counter((row.task, row.split) for row in rows.queries)

    tasks = [task.name for task in TASKS]
    extra = sorted({task for task, _ in counts} - set(tasks))
    # In the order of the registry; training-only tasks follow.
    return {
        task: {split: counts[task, split] for split in SPLITS}
        for task in tasks + extra
        if any(counts[task, split] for split in SPLITS)
    }


def render_counts(
    counts: Mapping[str, Mapping[str, int]], tasks: Sequence[EvaluationTask] = TASKS
) -> str:
    """The counts as text, with the number of "think" queries below."""
    think = {task.name for task in tasks if task.think}
    lines = [f"{'task':24}" + "".join(f"{split:>12}" for split in SPLITS)]

    for task, row in counts.items():
        label = task + (" *" if task in think else "")
        lines.append(f"{label:24}" + "".join(f"{row[split] or '-':>12}" for split in SPLITS))

    sums = [sum(row[split] for task, row in counts.items() if task in think) for split in SPLITS]
    lines.append(f"{'* think, together':24}" + "".join(f"{total:>12}" for total in sums))
    return "\n".join(lines)
