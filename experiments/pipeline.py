"""`python -m experiments.pipeline CONFIG`: all stages in order, each skipped if it is done.

A stage is done when its newest run finished under the fingerprint that its settings and inputs
have now, and everything that it left is still there (`callbacks.run_record.is_finished`). So a
changed input runs everything after it again, and nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, final

import msgspec
import yaml
from msgspec.structs import replace

from experiments.cli.allow_class import check_no_allow_class
from experiments.cli.config_files import find_config, lookup_lines, path_beside, with_configs
from experiments.cli.messages import command
from experiments.cli.split_flag import split_flag
from experiments.pipelines.expected_minutes import (
    ExpectedMinutes,
    expected_minutes,
    total_line,
)
from experiments.pipelines.stage_process import run_module
from mmemb.records.schema import Excerpt, Schema, convert
from mmemb.storage.unfinished import UNFINISHED_STATUS, Unfinished


@final
class Stage(Schema):
    """One line of the pipeline: `experiments.run SUBCOMMAND --config CONFIG ARGUMENTS`.

    `minutes` are those that the file states, for `--dry-run` before the first run.
    """

    name: str
    subcommand: Literal["fit", "validate", "test", "predict"]
    config: str
    arguments: tuple[str, ...] = ()
    minutes: Annotated[float, msgspec.Meta(ge=0)] | None = None

    def command_line(self, shared: Sequence[str]) -> list[str]:
        """Returns the arguments of `experiments.run`."""
        return [self.subcommand, "--config", self.config, *self.arguments, *shared]


@final
class Pipeline(Schema):
    """A pipeline file: the stages, what prepares the data, and what reports.

    `{experiment}` in the stages' arguments stands for the experiment's name, `{writer}` in their
    files for who writes rationales. With `seeds` everything runs once for each of them, `{seed}` in
    that name and in the arguments replaced.
    """

    experiment: str
    data_root: str
    stages: Annotated[tuple[Stage, ...], msgspec.Meta(min_length=1)]
    prepare: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    writer: str | None = None
    report: bool = True
    seeds: tuple[int, ...] = ()
    ablations: Mapping[str, Any] | None = None

    def of_seed(self, seed: int) -> Pipeline:
        """Returns what runs for one of the seeds."""
        stages = tuple(_filled(stage, "{seed}", str(seed)) for stage in self.stages)
        return replace(self, experiment=self.experiment.replace("{seed}", str(seed)), stages=stages)


@final
class _Overlay(Excerpt):
    """A pipeline file over another one; its other keys are those of `Pipeline`.

    Attributes:
        base: the other file, which names no base itself.
        more_arguments: name of a stage -> arguments behind its own, which therefore count.
    """

    base: str
    more_arguments: Mapping[str, tuple[str, ...]] = {}


def read_pipeline(path: Path, writer: str | None = None) -> Pipeline:
    """Reads a pipeline file; a mistake in it is one ValueError that names file and key.

    Configs that lie beside the file are found from any folder.

    Args:
        path: of the file.
        writer: in place of the file's; None = that of the file.
    """
    data = _parsed(path)
    if isinstance(data, dict) and "base" in data:
        data = _over_base(data, path)
    pipeline = convert(data, Pipeline, str(path))

    if writer is not None:
        pipeline = _written_by(writer, pipeline, path)

    named = [_filled(stage, "{experiment}", pipeline.experiment) for stage in pipeline.stages]
    if pipeline.writer is not None:
        named = [_filled(stage, "{writer}", pipeline.writer) for stage in named]
    return replace(pipeline, stages=tuple(_found(stage, path.parent) for stage in named))


def _written_by(writer: str, pipeline: Pipeline, path: Path) -> Pipeline:
    """Returns a pipeline with another writer of rationales."""
    files = [s.config for s in pipeline.stages if "{writer}" in s.config]
    if not files or pipeline.writer is None:
        raise ValueError(
            f"--writer {writer}: {path} leaves no choice of the writer. Leave the flag out, or "
            "write {writer} into the `config` of its stages, and a key `writer`."
        )

    # The files with one of its names lie side by side.
    pattern = find_config(path_beside(files[0].replace("{writer}", pipeline.writer), path.parent))
    names = sorted(file.stem for file in pattern.parent.glob("*.yaml"))
    if writer not in names:
        raise ValueError(f"--writer {writer}: expected one of {', '.join(names)}.")
    return replace(pipeline, writer=writer)


def _parsed(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such pipeline file.")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from None

    check_no_allow_class(data, str(path))
    return data


def _over_base(data: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Returns the keys of a file with `base`, put over those of its base."""
    overlay = convert(data, _Overlay, str(path))
    base_path = find_config(path_beside(overlay.base, path.parent))
    base = convert(_parsed(base_path), Pipeline, str(base_path))

    names = [stage.name for stage in base.stages]
    if unknown := sorted(set(overlay.more_arguments) - set(names)):
        raise ValueError(
            f"{path}: more_arguments names the stage {unknown[0]!r}; those of {overlay.base} are "
            f"{', '.join(names)}."
        )

    # The minutes of the base are those of its own settings and data.
    stages = [
        replace(
            stage,
            arguments=(*stage.arguments, *overlay.more_arguments.get(stage.name, ())),
            minutes=None,
        )
        for stage in base.stages
    ]
    overrides = {key: value for key, value in data.items() if key not in _Overlay.__struct_fields__}
    return {**msgspec.to_builtins(replace(base, stages=tuple(stages))), **overrides}


def _filled(stage: Stage, word: str, value: str) -> Stage:
    """Returns a stage in whose arguments and file a word is replaced."""
    arguments = tuple(text.replace(word, value) for text in stage.arguments)
    return replace(stage, config=stage.config.replace(word, value), arguments=arguments)


def _found(stage: Stage, folder: Path) -> Stage:
    """Returns a stage with the paths of the configs that lie in the pipeline file's folder."""
    arguments = with_configs(stage.arguments, lambda name: path_beside(name, folder))
    return replace(stage, config=path_beside(stage.config, folder), arguments=tuple(arguments))


def is_done(stage: Stage, shared: Sequence[str]) -> bool:
    """Tells whether a finished run covers the stage; parses the configuration, builds nothing."""
    from callbacks.run_record import is_finished
    from experiments.cli.experiment_cli import experiment_folder, parse, run_fingerprint

    # What stands after `--` may fit one stage and not another.
    try:
        config = parse(stage.command_line(shared))
    except ValueError as error:
        raise ValueError(f"stage {stage.name}: {error}") from error

    link = experiment_folder(config).run(config.name, stage.subcommand).path
    return is_finished(link, run_fingerprint(config, stage.subcommand))


def expected(stage: Stage, shared: Sequence[str]) -> ExpectedMinutes:
    """Returns how long a stage is expected to take."""
    from experiments.cli.experiment_cli import experiment_folder, parse

    config = parse(stage.command_line(shared))
    last_run = experiment_folder(config).run(config.name, stage.subcommand).path
    return expected_minutes(last_run, stage.minutes)


def run_stage(stage: Stage, shared: Sequence[str]) -> None:
    """Runs a stage in a process of its own; its failure ends the pipeline."""

    arguments = stage.command_line(shared)
    print(f"$ python -m experiments.run {' '.join(arguments)}", flush=True)
    status = run_module("experiments.run", arguments)

    # An interrupted stage is no failure: the caller's own status says so, and the next start
    # goes on.
    if status == UNFINISHED_STATUS:
        raise Unfinished(
            f"stage {stage.name} was interrupted before its end. Run the pipeline again to go on."
        )

    if status:
        sys.exit(
            f"error: stage {stage.name} failed (exit status {status}); what it printed "
            "above says why. The stages before it are kept: run the pipeline again to continue."
        )


def prepare(pipeline: Pipeline) -> None:
    """Makes the data if the pipeline says how; a prepared folder takes seconds."""
    if pipeline.prepare:
        words = [sys.executable, "-u", "-m", "datamodules.prepare", *pipeline.prepare]
        print(f"$ python {' '.join(words[2:])}", flush=True)
        if subprocess.run(words, check=False).returncode:
            sys.exit("error: preparing the data failed; what it printed above says why.")


@command()
def main(
    arguments: Sequence[str] | None = None, program: str = "python -m experiments.pipeline"
) -> None:
    """Parses the command line and runs the pipeline."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Runs the stages of a pipeline file in order and skips what is done.",
        epilog="Arguments after -- go to every stage, e.g. -- --trainer.devices 2",
        allow_abbrev=False,  # or the flag of a stage would be taken for one of these
    )

    parser.add_argument("config", help="e.g. pocket/pipeline, or a file of your own")
    parser.add_argument("--from", dest="start", metavar="STAGE", help="run this stage and later")
    parser.add_argument("--until", metavar="STAGE", help="stop after this stage")
    parser.add_argument("--seeds", type=int, help="number of a file's seeds, from 0 on")
    parser.add_argument(
        "--encoder",
        metavar="NAME",
        help="backbone of every stage that builds one: clip_vit_b32, ...",
    )
    parser.add_argument("--writer", help="who writes rationales, where the file leaves a choice")
    parser.add_argument("--pretrained", metavar="FILE", help="weights of that encoder")
    parser.add_argument(
        "--dry-run", action="store_true", help="only say what would run, and how long it may take"
    )

    # Arguments that this parser does not know belong to every stage, with or without `--`.
    options, rest = parser.parse_known_args(arguments)
    shared_rest = [argument for argument in rest if argument != "--"]

    try:
        for line in lookup_lines([options.config]):
            print(line, file=sys.stderr)

        options.config = find_config(options.config)
        pipeline = read_pipeline(options.config, options.writer)

        from experiments.cli.linked_keys import (
            split_linked,
        )  # Lightning: a wrong file is told first

        shared_rest, options.linked = split_linked(shared_rest)
        for one in per_seed(pipeline, options.seeds):
            if pipeline.seeds:
                print(f"\n{one.experiment}", flush=True)
            run_pipeline(with_shared(one, options), options, shared_rest)
    except Unfinished as end:
        print(end, file=sys.stderr)
        sys.exit(UNFINISHED_STATUS)


def per_seed(pipeline: Pipeline, num_seeds: int | None) -> list[Pipeline]:
    """Returns the pipeline itself, or one for each of its seeds."""
    from experiments.pipelines.ablations import check_seeds

    if not pipeline.seeds:
        return [pipeline]

    seeds = pipeline.seeds if num_seeds is None else tuple(range(num_seeds))
    check_seeds(seeds)

    if "{seed}" not in pipeline.experiment:
        raise ValueError(
            f"experiment is {pipeline.experiment!r}: with seeds it needs {{seed}} in its name, or "
            "each would overwrite the one before."
        )
    return [pipeline.of_seed(seed) for seed in seeds]


def with_shared(pipeline: Pipeline, options: argparse.Namespace) -> Pipeline:
    """Returns the pipeline with the flags that concern some of its stages only.

    Raises:
        ValueError: a flag concerns none.
    """
    more = [stage_flags(stage, options) for stage in pipeline.stages]
    for key in options.linked:
        if not any(f"--{key}" in flags for flags in more):
            raise ValueError(f"--{key} has no effect: no stage uses ${{{key}}}. Leave it out.")

    stages = [
        replace(stage, arguments=(*_without_encoder(stage, options), *flags))
        for stage, flags in zip(pipeline.stages, more, strict=True)
    ]
    return replace(pipeline, stages=tuple(stages))


def _without_encoder(stage: Stage, options: argparse.Namespace) -> Sequence[str]:
    """Returns the arguments of a stage without the encoder that another one replaces."""
    return (
        stage.arguments if options.encoder is None else split_flag(stage.arguments, "--encoder")[0]
    )


def stage_flags(stage: Stage, options: argparse.Namespace) -> list[str]:
    """Returns what `--encoder`, `--pretrained` and linked keys add to the arguments of a stage."""
    if options.encoder is None and options.pretrained is None and not options.linked:
        return []
    from experiments.cli.encoder import pipeline_arguments
    from experiments.cli.linked_keys import used_flags

    words = stage.command_line(())
    flags = pipeline_arguments(words, options.encoder, options.pretrained)
    return [*flags, *used_flags([*words, *flags], options.linked)]


def run_pipeline(pipeline: Pipeline, options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Prepares, runs what is not done, reports; prints the time of each part."""
    names = [stage.name for stage in pipeline.stages]
    for name in filter(None, (options.start, options.until)):
        if name not in names:
            raise ValueError(f"there is no stage {name!r}; the stages are {', '.join(names)}.")

    shared = [
        *("--experiment", pipeline.experiment, "--data_root", pipeline.data_root),
        *pipeline.arguments,
        *rest,
    ]

    seconds: dict[str, float] = {}
    with timed(seconds, "prepare"):
        if options.dry_run:
            print(f"prepare: would make or check {pipeline.data_root}" * bool(pipeline.prepare))
        else:
            prepare(pipeline)

    # With `--from` also finished stages run again, from the named one on.
    start = names.index(options.start) if options.start else len(names)
    end = names.index(options.until) if options.until else len(names)

    would_run: list[ExpectedMinutes] = []
    for number, stage in enumerate(pipeline.stages[: end + 1]):
        with timed(seconds, stage.name):
            if number < start and is_done(stage, shared):
                print(f"{stage.name}: done before, nothing to do", flush=True)
            elif options.dry_run:
                would_run.append(expected(stage, shared))
                print(f"{stage.name}: would run, {would_run[-1]}")
            else:
                run_stage(stage, shared)

    if options.dry_run:
        print(total_line(would_run))
        if pipeline.ablations:
            print("ablations: not counted")
        return

    # Both read the whole experiment, which `--until` leaves incomplete.
    if pipeline.ablations and not options.until:
        with timed(seconds, "ablations"):
            ablate(pipeline, options, shared)

    if pipeline.report and not options.until:
        with timed(seconds, "report"):
            report(pipeline.stages[-1], shared)

    print_times(seconds)


def ablate(pipeline: Pipeline, options: argparse.Namespace, shared: Sequence[str]) -> None:
    """Runs the cells that are not done, and writes their table."""
    from datamodules.data_roots import read_tasks
    from experiments.cli.experiment_cli import parse
    from experiments.pipelines.ablations import in_process, read_ablations, run_cells, write_report
    from experiments.report.policies.ablations import figures, page, picture

    ablations = read_ablations(pipeline.ablations or {}, options.config)
    fit, predict = (
        path_beside(name, options.config.parent) for name in (ablations.fit, ablations.predict)
    )
    ablations = dataclasses.replace(ablations, fit=fit, predict=predict)
    if options.seeds is not None:
        ablations = dataclasses.replace(ablations, seeds=tuple(range(options.seeds)))

    config = parse(pipeline.stages[-1].command_line(shared))
    folder = Path(config.runs) / config.experiment
    number = itertools.count(1)

    # Each cell is a fit and a predict.
    total = 2 * len(ablations.cells) * len(ablations.seeds)

    def run_unless_done(subcommand: str, path: str, arguments: Sequence[str]) -> None:
        stage = Stage(arguments[1], subcommand, path, tuple(arguments))
        arguments = [*arguments, *stage_flags(stage, options)]
        stage = replace(stage, arguments=tuple(arguments))
        done = is_done(stage, ())
        print(f"[{next(number)}/{total}] {arguments[1]} {subcommand}{': done' * done}", flush=True)
        if not done:
            in_process(subcommand, path, arguments)

    run_cells(ablations, folder, shared, run_unless_done)
    think = frozenset(task.name for task in read_tasks(Path(config.data_root)) if task.think)
    result = figures(folder, ablations, think)

    write_report(folder, page(result, ablations.seeds), result, picture(result))


def report(stage: Stage, shared: Sequence[str]) -> None:
    """Prints the table of the experiment that `stage` belongs to; makes the report if need be."""
    from experiments.cli.experiment_cli import parse
    from experiments.report.build import build, show_current

    config = parse(stage.command_line(shared))
    folder = Path(config.runs) / config.experiment
    root = Path(config.data_root)
    if not show_current(folder, root):
        build(folder, root)


@contextlib.contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Notes how long a part took."""
    start = time.monotonic()

    yield
    seconds[name] = time.monotonic() - start


def print_times(seconds: dict[str, float]) -> None:
    """Prints one line for each part, and the sum."""
    print("\nminutes of each part")
    for name, value in [*seconds.items(), ("all", sum(seconds.values()))]:
        print(f"  {name:<16}{value / 60:6.1f}")


if __name__ == "__main__":
    main()
