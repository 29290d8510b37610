"""`report verify SCORES --expected FILE`: does a run reach what its configuration promises?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, final

import msgspec

from experiments.scoring.scored import Model
from experiments.tables import Table
from mmemb.records.schema import Schema, read_json


def verify(scores: str, expected: Path) -> tuple[str, bool]:
    """Returns a line for each expected task, and whether all are inside.

    Args:
        scores: folder of score files, or `NAME=FOLDER,FOLDER` for a mean over seeds.
        expected: JSON: `data_revision`, `mode`, `source` (where the numbers are from),
            `tolerance` (points) and `scores`: task -> points, or `{"score", "tolerance"}`.

    Raises:
        ValueError: the file is no such thing, or the run was scored on other data.
    """
    model, wanted = Model.read(scores), read_json(expected, _ExpectedJson, "Correct it.")

    # An expectation holds for one revision of the data and one way to rank grades.
    if wanted.data_revision not in ("", model.revision):
        raise ValueError(
            f"{expected} is about data revision {wanted.data_revision!r}, {model.name} was "
            f"scored on {model.revision!r}: prepare the data of that revision."
        )

    modes = {file.mode for file in model.files[0].values()}
    if wanted.mode and modes != {wanted.mode}:
        raise ValueError(
            f"{expected} holds scores of mode {wanted.mode!r}, {model.name} those of "
            f"{sorted(modes)}: score it with `--mode {wanted.mode}`."
        )

    lines, inside = [], 0
    for task in wanted.scores:
        target, tolerance = wanted.points(task)
        score = model.scores.get(task)

        # A missing task is a failure: a promise of a score is one of a whole evaluation.
        good = score is not None and abs(100 * score - target) <= tolerance
        inside += good
        shown = "-" if score is None else f"{100 * score:.2f}"
        off = "-" if score is None else f"{100 * score - target:+.2f}"
        verdict = "missing" if score is None else "inside" if good else "OUTSIDE"
        lines.append([task, f"{target:.2f}", f"{tolerance:.2f}", shown, off, verdict])

    headings = ("task", "expected", "tolerance", "found", "off by", "verdict")
    text = Table(headings, lines).markdown()
    return f"{text}\n\n{inside} of {len(lines)} inside.", inside == len(lines)


@final
class _PointsJson(Schema):
    """An expected score with a tolerance of its own."""

    score: float
    tolerance: float | None = None


@final
class _ExpectedJson(Schema):
    """An `expected.json`."""

    scores: Annotated[dict[str, float | _PointsJson], msgspec.Meta(min_length=1)]
    data_revision: str = ""
    mode: str = ""
    source: str = ""
    tolerance: float = 1.0

    def points(self, task: str) -> tuple[float, float]:
        """Returns the expected score and tolerance of a task."""
        entry = self.scores[task]
        if not isinstance(entry, _PointsJson):
            return entry, self.tolerance
        return entry.score, self.tolerance if entry.tolerance is None else entry.tolerance
