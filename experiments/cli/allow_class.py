"""The option `--allow-class` of every command that builds what a folder or a run names."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

FLAG = "--allow-class"


def add_allow_class(parser: argparse.ArgumentParser) -> None:
    """Adds the option, whose values are for `allowing_classes`."""
    parser.add_argument(
        FLAG,
        action="append",
        default=[],
        metavar="package.module.Class",
        help="a class of another package that a saved folder may name; its code runs",
    )


def split_allow_class(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits a command line into the allowed classes and the other arguments.

    Taken out before a parser of configurations sees it: what stands in a file allows nothing.

    >>> split_allow_class(["fit", "--allow-class", "a.B", "--config", "c.yaml"])
    (['a.B'], ['fit', '--config', 'c.yaml'])
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_allow_class(parser)
    options, rest = parser.parse_known_args(list(arguments))
    return options.allow_class, rest


def check_no_allow_class(data: Any, where: str) -> None:
    """Refuses the option in the arguments that a file gives to a command.

    Args:
        data: parsed YAML.
        where: names the file, for the error.

    Raises:
        ValueError: it stands there.
    """
    if isinstance(data, dict):
        data = list(data.values())
    if isinstance(data, list):
        for value in data:
            check_no_allow_class(value, where)
    elif isinstance(data, str) and data.partition("=")[0] == FLAG:
        raise ValueError(
            f"{where} holds {FLAG}, which no file may give: write it on the command line, behind "
            "the file."
        )
