"""`python -m experiments.run fit ... --sweep KEY=VALUE,VALUE`: one fit for each combination.

Each is a run in a process of its own with the values in its name, and is skipped if it is done.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import yaml

from experiments.runs.run_files import RunSummary, read_summary
from experiments.tables import Table
from mmemb.storage.unfinished import UNFINISHED_STATUS, Unfinished

SIGNAL_STATUSES = (130, 143)
"""Exit statuses of a fit that a signal has ended."""


@final
@dataclass(frozen=True, slots=True)
class Axis:
    """A setting of the command line, and the texts of the values that it takes."""

    key: str
    values: tuple[str, ...]

    @classmethod
    def read(cls, text: str) -> Axis:
        """Reads `KEY=VALUE,VALUE`; a comma within brackets or quotes belongs to a value.

        >>> Axis.read("model.losses.dims=[64],[64, 128]").values
        ('[64]', '[64, 128]')
        """
        key, _, listed = text.partition("=")
        listed = f"[{listed}]"
        try:
            nodes = yaml.compose(listed).value
        except yaml.YAMLError:
            nodes = []

        values = [_text_of(node, listed) for node in nodes]
        if not key or not values:
            raise ValueError(
                f"--sweep {text!r}: expected a setting and its values, such as "
                "model.optimizer.lr=1e-4,3e-4."
            )
        return cls(key, tuple(dict.fromkeys(values)))


@final
@dataclass(frozen=True, slots=True)
class SweptRun:
    """One combination of values: the name of its run, and the command line of its fit."""

    values: tuple[str, ...]
    name: str
    command: list[str]


def read_sweep(arguments: Sequence[str]) -> tuple[list[str], list[Axis]]:
    """Returns the other arguments, and what `--sweep` asks for.

    >>> read_sweep(["fit", "--sweep", "seed_everything=0,1", "--name", "a"])
    (['fit', '--name', 'a'], [Axis(key='seed_everything', values=('0', '1'))])
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    # Without a value it is an empty text, which `Axis.read` refuses in one sentence.
    parser.add_argument("--sweep", action="append", nargs="?", const="", default=[])
    options, rest = parser.parse_known_args(arguments)
    return rest, [Axis.read(text) for text in options.sweep]


def swept_runs(arguments: Sequence[str], axes: Sequence[Axis], name: str) -> list[SweptRun]:
    """Returns the runs of a sweep, in the order of the values.

    Args:
        arguments: of `experiments.run`, without `--sweep`.
        axes: what is varied.
        name: of the stage; those of the runs begin with it.

    Raises:
        ValueError: two combinations would have the same name, or two axes have the same key.
    """
    # Of two values of one key the last would count, under a name that holds both.
    keys = [axis.key.replace(".init_args.", ".") for axis in axes]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise ValueError(
            f"--sweep names {twice[0]} twice: put all its values behind one, such as "
            f"--sweep {twice[0]}=VALUE,VALUE."
        )

    # The last part of a key says enough, unless two keys share it.
    ends = [axis.key.rpartition(".")[2] for axis in axes]
    labels = [e if ends.count(e) == 1 else a.key for e, a in zip(ends, axes, strict=True)]

    runs: dict[str, SweptRun] = {}
    for values in itertools.product(*(axis.values for axis in axes)):
        parts = [f"{label}={_plain(v)}" for label, v in zip(labels, values, strict=True)]
        run_name = "-".join([name, *parts])

        settings = [f"--{axis.key}={value}" for axis, value in zip(axes, values, strict=True)]
        run = SweptRun(values, run_name, [*arguments, *settings, "--name", run_name])
        other = runs.setdefault(run_name, run)
        if other is not run:
            raise ValueError(
                f"--sweep: {', '.join(other.values)} and {', '.join(values)} would both be the run "
                f"{run_name}. Run one of them by itself, with a --name."
            )
    return list(runs.values())


def sweep(arguments: Sequence[str], axes: Sequence[Axis]) -> None:
    """Runs the fits one after another, and prints a table of their results.

    Args:
        arguments: of `experiments.run`, without `--sweep`.
        axes: what is varied.

    Raises:
        ValueError: it is no fit, or several ranks were started for it; the first setting that is
            wrong is named before anything runs.
        Unfinished: a fit was interrupted by its own limit.
    """
    if list(arguments[:1]) != ["fit"]:
        raise ValueError("--sweep is an option of `experiments.run fit`: write fit in front.")

    # Lightning: only who sweeps waits for it.
    from callbacks.run_record import is_finished
    from experiments.cli.experiment_cli import experiment_folder, parse, run_fingerprint
    from experiments.pipelines.stage_process import run_module
    from experiments.runs.claim import Launch

    if Launch.of(os.environ) is not None:
        raise ValueError(
            "--sweep starts one fit after another, but torchrun or srun has started several ranks: "
            "give each combination a job of its own, or start one process with --trainer.devices."
        )

    # All are parsed before one runs: the last value may be the mistyped one.
    runs = swept_runs(arguments, axes, parse(list(arguments)).name or "fit")
    configs = [parse(run.command) for run in runs]

    rows, failed = [], []
    for run, config in zip(runs, configs, strict=True):
        link = experiment_folder(config).run(config.name)
        done = is_finished(link.path, run_fingerprint(config, "fit"))
        print(f"[{len(rows) + 1}/{len(runs)}] {run.name}{': done before' * done}", flush=True)
        status = 0 if done else run_module("experiments.run", run.command)

        if status == UNFINISHED_STATUS:
            raise Unfinished(f"{run.name} was interrupted. The same command goes on.")
        # A signal to one fit is meant for all of them.
        if status in SIGNAL_STATUSES:
            sys.exit(status)

        # The link of a run that failed may lead to an older one of the same name.
        failed += [run.name] * bool(status)
        summary = RunSummary() if status else read_summary(link.path)
        rows.append((run, summary, "failed" if status else str(link.summary)))

    print(f"\n{result_table(axes, rows)}")
    if failed:
        sys.exit(
            f"error: {len(failed)} of {len(runs)} runs failed ({', '.join(failed)}); what they "
            "printed above says why. The same command tries them again."
        )


def result_table(axes: Sequence[Axis], rows: Sequence[tuple[SweptRun, RunSummary, str]]) -> str:
    """Returns the values of each run, its metrics, and the file that holds its result."""
    from callbacks.run_record import HEADLINES

    metrics = [name for name in HEADLINES if any(name in row[1].metrics for row in rows)]
    headings = [*(axis.key for axis in axes), *metrics, "minutes", "result"]
    lines = [[*run.values, *_figures(summary, metrics), result] for run, summary, result in rows]
    return Table(headings, lines).markdown()


def _figures(summary: RunSummary, metrics: Sequence[str]) -> list[str]:
    """Returns metrics and minutes; dashes where a run has failed."""
    values = [summary.metrics.get(name) for name in metrics]
    minutes = "-" if summary.seconds is None else f"{summary.seconds / 60:.1f}"
    return [*("-" if value is None else f"{value:.4g}" for value in values), minutes]


def _text_of(node: yaml.Node, listed: str) -> str:
    """Returns a value as it was typed: YAML itself would read 1e-4 as a word.

    Quotes are left out where they only keep a comma: a setting that is a text would hold them.
    """
    text = listed[node.start_mark.index : node.end_mark.index]
    if not (isinstance(node, yaml.ScalarNode) and node.style in ("'", '"')):
        return text
    try:
        is_text = yaml.safe_load(node.value) == node.value
    except (yaml.YAMLError, ValueError):
        is_text = False
    return node.value if is_text else text


def _plain(value: str) -> str:
    """Returns a value as a part of a folder's name.

    >>> _plain("[64, 128]")
    '64_128'
    """
    return re.sub(r"[^\w.+-]+", "_", value).strip("_") or "none"
