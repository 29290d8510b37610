"""`prepare mmeb-v2`: local copies of the published data sets -> a data root for each task."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from datamodules.prepare.converting import add_converting, raise_failures
from datamodules.prepare.mmeb.folders import Settings
from datamodules.prepare.mmeb.layouts import media_problems, plan_task
from datamodules.prepare.mmeb.plan import TaskPlan
from datamodules.prepare.mmeb.write import write_root
from mmemb.benchmarks.mmeb_v2 import REVISIONS, Task, task_named, tasks_of
from mmemb.records.counted_nouns import counted

HELP = "the 78 tasks of MMEB-V2, from local copies (docs/mmeb_v2.md)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the subcommand."""
    parser.add_argument("--source", type=Path, required=True, help="folder of the local copies")
    parser.add_argument("--tasks", nargs="+", metavar="NAME", help="default: all 78")
    parser.add_argument("--out", type=Path, default=Path("data/mmeb_v2"))
    add_converting(parser, "pictures")
    parser.add_argument(
        "--revision", choices=REVISIONS, default=REVISIONS[-1], help="of the page sets"
    )


def run(options: argparse.Namespace) -> None:
    """Converts or checks the tasks."""
    if options.workers < 1:
        raise ValueError(f"--workers {options.workers}: expected 1 or more.")
    if not options.source.is_dir():
        raise FileNotFoundError(
            f"--source {options.source} is no folder: expected the local copies of MMEB-V2; "
            "docs/mmeb_v2.md says how to get them."
        )

    tasks = tasks_of(options.revision)
    if options.tasks:
        tasks = tuple(task_named(name, tasks) for name in options.tasks)
    prepare_tasks(tasks, options)


def next_words(options: argparse.Namespace) -> list[str]:
    """Returns the words of the command that comes next."""
    return ["test", "--config", "mmeb_v2/evaluate", "--data_root", str(options.out)]


def prepare_tasks(tasks: Sequence[Task], options: argparse.Namespace) -> None:
    """Prepares task by task; a task that fails does not keep the others from being written.

    Raises:
        ValueError: at the end, with what is wrong with each of those.
    """
    failures = []
    for number, task in enumerate(tasks, 1):
        label = f"[{number}/{len(tasks)}] {task.modality}/{task.name}"
        # One missing archive must not stop the other tasks: failures are listed at the end.
        try:
            plan = plan_task(task, options.source)
            line = _check(plan, options) if options.check else _write(plan, label, options)
        except (ValueError, OSError) as error:
            failures.append(str(error))
            line = "NOT " + ("as published" if options.check else "written")
        print(f"{label}: {line}", flush=True)

    raise_failures(failures, len(tasks), "task")


def _check(plan: TaskPlan, options: argparse.Namespace) -> str:
    problems = media_problems(plan)
    if problems and options.on_error == "raise":
        what, whats = "file or folder", "files or folders"
        raise ValueError(
            f"{plan.task.name}: {counted(len(problems), what, whats)} cannot be had; the first: "
            f"{problems[0]}"
        )

    missing = f", {len(problems)} missing" if problems else ""
    sizes = _sizes(len(plan.queries), len(plan.candidates))
    return f"{sizes}{missing}: as published"


def _write(plan: TaskPlan, label: str, options: argparse.Namespace) -> str:
    def tell(folder: str, done: int, total: int) -> None:
        # A log file would hold thousands of such lines, so only a terminal shows them.
        if sys.stderr.isatty():
            end = "\n" if done == total else ""
            print(f"\r{label}: {folder} {done}/{total} shards", end=end, file=sys.stderr)

    root = options.out / plan.task.modality / plan.task.name
    settings = Settings(options.workers, options.on_error, tell, options.recheck)
    manifest = write_root(plan, root, settings)

    counts = manifest["counts"]
    partial = f", PARTIAL: {len(manifest['skipped'])} left out" if manifest["partial"] else ""
    return f"{_sizes(counts['queries'], counts['candidates'])}{partial}"


def _sizes(num_queries: int, num_candidates: int) -> str:
    return f"{counted(num_queries, 'query', 'queries')}, {counted(num_candidates, 'candidate')}"
