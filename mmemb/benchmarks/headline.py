"""The headline of a benchmark: plain means of tasks, and only of groups that are complete."""

from __future__ import annotations

from collections.abc import Mapping

from mmemb.benchmarks.mmeb_v2 import COUNTS, TASKS, groups_of, task_named
from mmemb.benchmarks.score_files import ScoreFile, group_means

_KNOWN = {task.name for task in TASKS}


def headline_metrics(score_files: Mapping[str, ScoreFile]) -> dict[str, float]:
    """Task -> its headline metric; MMEB-V2's own by modality, of other benchmarks the file's."""
    return {
        name: file.scores[task_named(name).metric if name in _KNOWN else file.metric]
        for name, file in score_files.items()
    }


def complete_groups(score_files: Mapping[str, ScoreFile]) -> dict[str, float]:
    """Group -> mean over its tasks, where all of them are there and whole.

    Raises:
        ValueError: files of different data revisions or modes are mixed.
    """
    whole = {name: file for name, file in score_files.items() if not file.partial}
    check_alike(score_files)
    return group_means(headline_metrics(whole), known_groups(score_files))


def known_groups(score_files: Mapping[str, ScoreFile]) -> dict[str, list[str]]:
    """Group -> all tasks that it needs; of benchmarks other than MMEB-V2, those that are there."""
    if is_mmeb(score_files):
        return groups_of()

    # Other benchmarks have no published list of tasks, so nothing can be missing from theirs.
    groups: dict[str, list[str]] = {}
    for name, file in score_files.items():
        for group in (file.group, "all"):
            groups.setdefault(group, []).append(name)
    return groups


def headline_text(score_files: Mapping[str, ScoreFile]) -> str:
    """A text for people: means in per cent, and the names of missing tasks if there are any."""
    means = complete_groups(score_files)
    lines = [f"{group:<14} {100 * value:6.2f}" for group, value in means.items()]

    partial = sorted(name for name, file in score_files.items() if file.partial)
    if partial:
        lines.append(f"partial, and in no mean: {', '.join(partial)}")

    if is_mmeb(score_files):
        missing = [task.name for task in TASKS if task.name not in score_files]
        parts = [
            f"{sum(t.modality == m and t.name in score_files for t in TASKS)} of {count} {m}"
            for m, count in COUNTS.items()
        ]

        if missing:
            lines.append(
                f"No headline: there are {', '.join(parts)} tasks. Missing: " + ", ".join(missing)
            )

    ties = sum(int(file.ties.get("queries", 0)) for file in score_files.values())
    lines.append(f"near ties: {ties} queries")
    return "\n".join(lines)


def check_alike(score_files: Mapping[str, ScoreFile]) -> None:
    """Refuses to average scores that are not comparable."""
    # Files of published scores state neither revision nor model, and these pass.
    for what, values in (
        ("modes", {file.mode for file in score_files.values()}),
        (
            "data revisions",
            {r for f in score_files.values() if (r := f.provenance.get("revision"))},
        ),
        ("models", {r for f in score_files.values() if (r := f.provenance.get("run"))}),
    ):
        if len(values) > 1:
            raise ValueError(
                f"The score files are of different {what} ({sorted(values)}): score all tasks "
                "alike, or name a folder of one kind."
            )


def is_mmeb(score_files: Mapping[str, ScoreFile]) -> bool:
    """Tells whether these are tasks of MMEB-V2 alone."""
    return set(score_files) <= _KNOWN
