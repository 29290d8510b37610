"""The command `mmemb`: the `python -m ...` commands of the project under one name.

`mmemb search ...` is `python -m experiments.search ...`, with two differences: the working folder
is searched last for modules, and `--root DIR` (or $MMEMB_ROOT) names another folder for data and
runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import final

from experiments.cli.config_files import config_names, find_config, lookup_lines, with_configs
from experiments.cli.split_flag import split_flag
from experiments.rooms import ROOMS, SAFE_PATH, check_folder
from mmemb.records.nearest_name import nearest

ROOT = "MMEMB_ROOT"
"""Environment variable with the folder of data and runs; also tells it to ranks."""

STARTED_IN = "MMEMB_STARTED_IN"
"""Set for ranks that Lightning starts: the working folder before `--root`."""


@final
@dataclass(frozen=True, slots=True)
class Command:
    """A command.

    Attributes:
        module: its module, whose `main` takes the arguments.
        help: one line.
        words: arguments that stand in front of the user's.
    """

    module: str
    help: str
    words: tuple[str, ...] = ()


def _stage(subcommand: str, help_line: str) -> Command:
    return Command("experiments.run", help_line, (subcommand,))


COMMANDS = {
    "fit": _stage("fit", "train one stage: --config pocket/trunk"),
    "validate": _stage("validate", "measure a stage on its validation split"),
    "test": _stage("test", "measure a stage on its test split"),
    "predict": _stage("predict", "write what a stage makes for the next ones"),
    "pipeline": Command("experiments.pipeline", "run all stages of a file, skipping what is done"),
    "prepare": Command("datamodules.prepare.__main__", "make data: of your own, pocket, MMEB"),
    "report": Command("experiments.report.__main__", "tables and pages of runs and scores"),
    "search": Command("experiments.search.__main__", "search candidates for a text or a picture"),
    "calibrate": Command("experiments.calibrate.__main__", "budgets fitted to your own queries"),
    "score": Command("experiments.score", "score saved embeddings or rankings of any model"),
    "export": Command("experiments.export.__main__", "write a model for other libraries"),
    "adopt": Command("experiments.adopt", "take a public embedder as if a run had made it"),
    "plan": Command("experiments.plan.__main__", "memory and time of a stage, before it runs"),
    "check": Command("experiments.check", "test if a backbone keeps its promises"),
    "show": Command("experiments.show", "samples of a batch as the model sees them"),
    "invariance": Command("experiments.invariance", "test if scores depend on how a model is run"),
    "planted": Command("experiments.planted.__main__", "the method where the truth is known"),
    "bench": Command("experiments.bench.__main__", "timings against limits"),
    "bench_gpu": Command("experiments.bench_gpu", "timings on one GPU"),
    "bench_peers": Command("experiments.bench_peers", "timings against other libraries"),
}


def main() -> None:
    """Runs the command that the first argument names; the exit status is that of the command."""
    started_in = Path(os.environ.get(STARTED_IN, os.getcwd()))
    # Processes that this one starts by `python -m` would search it first.
    if os.getcwd() not in sys.path:
        os.environ[SAFE_PATH] = "1"
    try:
        arguments = enter_root(sys.argv[1:])
        for folder in dict.fromkeys((started_in, Path.cwd())):
            check_folder(folder)
    except ValueError as error:
        sys.exit(f"error: {error}")

    # Lightning starts further ranks by these arguments.
    sys.argv[1:] = arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return

    # Last, so that a class of the user's own is found, and none of ours or of a library is hidden.
    sys.path.append(str(started_in))
    sys.exit(run(arguments[0], arguments[1:]))


def run(name: str, arguments: Sequence[str]) -> int | None:
    """Runs a command, and returns its exit status; None is 0."""
    if name not in COMMANDS:
        hint = nearest(name, COMMANDS)
        sys.exit(f"error: mmemb has no command {name!r}.{hint} `mmemb --help` lists them.")

    command = COMMANDS[name]
    try:
        module = import_module(command.module)
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] in ROOMS:
            raise
        sys.exit(
            f"error: `mmemb {name}` needs the package {error.name}, which is not installed: "
            "pip install 'mmemb-r1[train]'."
        )

    if command.words:
        return module.main([*command.words, *arguments])  # type: ignore[no-any-return]
    return module.main(arguments, f"mmemb {name}")  # type: ignore[no-any-return]


def usage() -> str:
    """Returns the list of commands."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{width}}{command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: mmemb COMMAND [--root DIR] ...",
            "",
            *lines,
            "",
            "`mmemb COMMAND --help` tells more. Data and runs lie in the working folder, or in",
            "that of --root (else $MMEMB_ROOT). A configuration of the package needs no path:",
            "`mmemb fit --config pocket/trunk`, `mmemb pipeline pocket/pipeline`.",
        ]
    )


def enter_root(arguments: Sequence[str]) -> list[str]:
    """Goes to the folder of `--root`, else of $MMEMB_ROOT, and returns the other arguments.

    YAML files on the command line are found where the command was given; all other paths start at
    that folder.

    Raises:
        ValueError: there is no such folder.
    """
    words, root = split_flag(arguments, "--root")
    if "--root" in words:
        raise ValueError("--root names no folder.")

    root = root or os.environ.get(ROOT)
    if not root:
        return words

    folder = Path(root).resolve()
    if not folder.is_dir():
        raise ValueError(f"--root {root}: there is no such folder. Make it first.")

    # Relative names would mean other files in the new working folder, here and in ranks.
    for line in lookup_lines(config_names(words)):
        print(line, file=sys.stderr)
    words = [_absolute(w) if w.endswith((".yaml", ".yml")) else w for w in words]
    words = with_configs(words, lambda name: _absolute(str(find_config(name))))

    sys.argv[0] = str(Path(sys.argv[0]).absolute())
    os.environ.setdefault(STARTED_IN, os.getcwd())
    os.environ[ROOT] = str(folder)
    os.chdir(folder)
    return words


def _absolute(name: str) -> str:
    """Returns the absolute path of a file of the working folder; another name as it is."""
    return str(Path(name).absolute()) if Path(name).is_file() else name


if __name__ == "__main__":
    main()
