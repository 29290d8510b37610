"""Command line: python -m datamodules.prepare COMMAND ..., one `command` module each."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from importlib import import_module

from datamodules.prepare.next_command import next_command
from mmemb.storage.folder_kinds import FolderKind, check_kind
from mmemb.storage.resources import check_system
from mmemb.storage.signals import exit_on_signals

COMMANDS = {
    "pocket": "datamodules.prepare.pocket.command",
    "folder": "datamodules.prepare.folder.command",
    "mmeb-v2": "datamodules.prepare.mmeb.command",
    "mmeb-train": "datamodules.prepare.mmeb_train.command",
    "tiny-vlm": "datamodules.prepare.tiny_vlm.command",
}
"""Name -> module with `HELP`, `add_arguments(parser)`, `run(options)`, and `next_words(options)`:
the command that comes next, as behind `mmemb`."""

_TRIALS = ("--check", "--download-only")
"""Flags by which a command does less than its whole work; the same command without them is next."""


@exit_on_signals()
def main(
    arguments: Sequence[str] | None = None, program: str = "python -m datamodules.prepare"
) -> int:
    """Runs the command; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parse(arguments, program)
    module = import_module(COMMANDS[options.command])
    start = time.monotonic()

    # All commands share this handling: users see one line instead of a traceback.
    try:
        check_system()
        if options.command != "tiny-vlm":  # a model, which checks its own folder
            check_kind(options.out, "data", FolderKind.DATA)
        module.run(options)
    except (ValueError, OSError) as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(
            f"prepare: {options.command} needs the package {error.name}, which is not installed: "
            "run `pip install -e '.[data]'` (of `pocket`: `.[pocket]`).",
            file=sys.stderr,
        )
        return 1

    print(f"{options.command} took {time.monotonic() - start:.0f} s")

    whole = [word for word in arguments if word not in _TRIALS]
    words = module.next_words(options) if whole == list(arguments) else ["prepare", *whole]
    print(f"next: {next_command(program, words)}")
    return 0


def _parse(arguments: Sequence[str], program: str) -> argparse.Namespace:
    # An abbreviated flag could not be taken out of the next command.
    parser = argparse.ArgumentParser(prog=program, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, module in COMMANDS.items():
        command = import_module(module)
        subparser = commands.add_parser(name, help=command.HELP, allow_abbrev=False)
        command.add_arguments(subparser)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
