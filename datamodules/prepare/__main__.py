"""Command line: python -m datamodules.prepare COMMAND ..., one `command` module each."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from importlib import import_module

from mmemb.storage.resources import check_system
from mmemb.storage.signals import exit_on_signals

COMMANDS = {
    "pocket": "datamodules.prepare.pocket.command",
    "folder": "datamodules.prepare.folder.command",
    "mmeb-v2": "datamodules.prepare.mmeb.command",
    "mmeb-train": "datamodules.prepare.mmeb_train.command",
    "tiny-vlm": "datamodules.prepare.tiny_vlm.command",
}
"""Name -> module with `HELP`, `add_arguments(parser)` and `run(options)`."""


@exit_on_signals()
def main(
    arguments: Sequence[str] | None = None, program: str = "python -m datamodules.prepare"
) -> int:
    """Runs the command; returns the exit status."""
    options = _parse(arguments, program)
    start = time.monotonic()

    # All commands share this handling: users see one line instead of a traceback.
    try:
        check_system()
        import_module(COMMANDS[options.command]).run(options)
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
    return 0


def _parse(arguments: Sequence[str] | None, program: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=program)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, module in COMMANDS.items():
        command = import_module(module)
        command.add_arguments(commands.add_parser(name, help=command.HELP))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
