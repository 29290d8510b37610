"""Expected minutes of a stage: those of its last run, else those that its pipeline file states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from experiments.runs.run_files import read_summary
from mmemb.records.counted_nouns import counted


@final
@dataclass(frozen=True, slots=True)
class ExpectedMinutes:
    """Expected minutes of a stage.

    Attributes:
        minutes: None if neither a run nor the pipeline file states them.
        origin: where the number comes from.
    """

    minutes: float | None
    origin: str

    def __str__(self) -> str:
        if self.minutes is None:
            return "minutes not known"
        number = f"about {self.minutes:.1f}" if self.minutes >= 0.05 else "less than 0.1"
        return f"{number} minutes {self.origin}"


def expected_minutes(last_run: Path, stated: float | None) -> ExpectedMinutes:
    """Returns the expected minutes of a stage.

    Args:
        last_run: link to the newest finished run of the stage, which may be missing.
        stated: minutes that the pipeline file states, or None.
    """
    seconds = read_summary(last_run).seconds
    if seconds is not None:
        return ExpectedMinutes(seconds / 60, "(as its last run took)")
    return ExpectedMinutes(stated, "(as the pipeline file states)")


def total_line(stages: Sequence[ExpectedMinutes]) -> str:
    """Returns one line with the sum of all stages that would run."""
    known = [stage.minutes for stage in stages if stage.minutes is not None]
    unknown = len(stages) - len(known)
    without = (
        f", without {counted(unknown, 'stage')} whose minutes are not known" if unknown else ""
    )
    return f"all stages: about {sum(known):.1f} minutes{without}"
