"""The runs below a folder, and what two of them differ in: settings first, then metrics."""

from __future__ import annotations

from pathlib import Path

from experiments.cli.checkpoint_check import flattened
from experiments.runs.recorded_config import read_config
from experiments.runs.run_files import read_environment, read_summary
from experiments.tables import Table
from mmemb.records.schema import read_json
from mmemb.storage.files import is_temporary
from mmemb.storage.run_folder import MARK, RunFolder
from mmemb.storage.run_marks import RunMark

HEADLINES = ("test/recall@1", "val/recall@1", "train/loss", "val/tau")


def list_runs(folder: Path) -> str:
    """Returns a table of every run below a folder, the newest first, and why runs have failed.

    Args:
        folder: `runs`, or an experiment in it.

    Raises:
        FileNotFoundError: there is no run.
    """
    # Links such as `embedder` point to runs that are listed under their own name.
    runs = sorted(
        {
            path.parent
            for path in folder.rglob(MARK)
            if not path.parent.is_symlink() and not is_temporary(path.parent)
        },
        key=lambda run: run.name,
        reverse=True,
    )
    if not runs:
        raise FileNotFoundError(
            f"{folder} holds no run: `experiments.run` writes them to runs/EXPERIMENT/."
        )

    headings = ("run", "state", "minutes", "owner", "tags", "commit", "metric")
    table = Table(headings, [_line(folder, run) for run in runs]).markdown()

    # Below the table, whose columns they would make too wide for a terminal.
    marks = {run: read_json(RunFolder(run).mark, RunMark) for run in runs}
    reasons = [
        f"{run.relative_to(folder)} {mark.reason}" for run, mark in marks.items() if mark.reason
    ]
    return "\n".join([table, *([""] if reasons else []), *reasons])


def diff_runs(left: Path, right: Path) -> str:
    """Returns the settings in which two runs differ, and their metrics side by side."""
    settings = [flattened(read_config(run)) for run in (left, right)]
    metrics = [read_summary(run).metrics for run in (left, right)]

    changed = [
        [key, *(str(values.get(key, "-")) for values in settings)]
        for key in sorted({*settings[0], *settings[1]})
        if settings[0].get(key, "-") != settings[1].get(key, "-")
    ]
    measured = [
        [name, *(_number(values.get(name)) for values in metrics), _difference(name, metrics)]
        for name in sorted({*metrics[0], *metrics[1]})
    ]

    names = (left.name, right.name)
    parts = [
        Table(("setting", *names), changed).markdown() if changed else "No setting differs.",
        Table(("metric", *names, "difference"), measured).markdown() if measured else "No metrics.",
    ]
    return "\n\n".join(parts)


def _line(folder: Path, run: Path) -> list[str]:
    mark = read_json(RunFolder(run).mark, RunMark)
    summary, environment = read_summary(run), read_environment(run)
    metrics = summary.metrics

    shown = [f"{name} {_number(metrics[name])}" for name in HEADLINES if name in metrics]

    # A commit alone does not say which code ran if there were changes on top of it.
    dirty = "+" if environment.uncommitted_changes else ""

    return [
        str(run.relative_to(folder)),
        _state(mark),
        "-" if summary.seconds is None else f"{summary.seconds / 60:.1f}",
        environment.owner or "-",
        ", ".join(environment.tags) or "-",
        f"{environment.git_commit or '-'}{dirty}",
        shown[0] if shown else "-",
    ]


def _state(mark: RunMark) -> str:
    """Returns `finished`, `failed` or `unfinished`."""
    return "finished" if mark.finished else mark.reason.partition(":")[0] or "unfinished"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _difference(name: str, metrics: list[dict[str, float | None]]) -> str:
    values = [of_run.get(name) for of_run in metrics]
    return "-" if None in values else f"{values[1] - values[0]:+.4g}"
