"""The page of `--help`: the project's own keys first, each in one line, and how to see the rest."""

from __future__ import annotations

import inspect
import re
import sys
from argparse import SUPPRESS
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from pydoc import locate
from typing import Any

import docstring_parser
from jsonargparse import ArgumentParser

from experiments.cli.config_check import class_of
from experiments.cli.settings_sources import ABSENT, SettingsSource, last_value
from experiments.cli.short_options import SHORT_OPTIONS

HELP = "--help"
HELP_ALL = "--help.all"
HELP_FLAGS = (HELP, "-h")

MOST_LEFT, WIDTH = 40, 100
"""Most columns of keys and values, and columns of the page."""

_USAGE = "usage: {program} {name} --config FILE [--config FILE ...] [--KEY VALUE]"

_REST = (
    ("--help.all", None, "every option of Lightning's Trainer (docs/lightning_options.md)"),
    ("--model.help CLASS", None, "the arguments of a class, with types; also --data.help CLASS"),
    ("--print_config", None, "all settings as one YAML file; nothing is run"),
    (
        "--allow-class CLASS",
        None,
        "a class of another package that a folder may name; its code runs",
    ),
    ("--encoder NAME", None, "backbone of configs/backbone/NAME.yaml, or of a file of your own"),
    ("--explain KEY", None, "which file or flag gave a setting its value; nothing is run"),
    ("--sweep KEY=VALUE,VALUE", None, "of fit: one run for each value (docs/team.md)"),
)

_END = """\
Flags are keys of files: `--lr 1e-4` is `lr: 1e-4`. With MMEMB_TRACEBACK=1 an error prints its
traceback, too."""

_TEXTS = {
    "config": "settings in YAML; a later file goes over those before it",
    "seed_everything": "seed of all random numbers; true: a random one",
    "ckpt_path": "checkpoint to start from",
    "weights_only": "false: load any object of a checkpoint, which may run code",
    "return_predictions": "of no effect: SidecarWriter keeps what is predicted",
}
"""Key -> one line for keys that Lightning describes at length."""


def help_page(parser: ArgumentParser, sources: Sequence[SettingsSource]) -> str:
    """Returns the page of a subcommand.

    Args:
        parser: of the subcommand.
        sources: files and flags; the arguments of the classes that they name are described.
    """
    name = parser.prog.split()[-1]
    classes = [(key, path) for key in ("model", "data") if (path := class_of(key, sources))]

    # `mmemb fit` and `python -m experiments.run fit` are one command.
    is_installed = Path(sys.argv[0]).name == "mmemb"
    program = "mmemb" if is_installed else "python -m experiments.run"
    lines = [_USAGE.format(program=program, name=name)]
    lines += _section("Keys and their values:", _own_rows(parser, sources, short=bool(classes)))
    for key, class_path in classes:
        lines += _section(f"{key}: {class_path}", _class_rows(key, class_path, sources))

    more = ("--config FILE --help", "the keys of the model and the data of a file")
    if classes:
        more = (f"{name} --help", "the other keys of every stage")
    return "\n".join([*lines, *_section("The rest:", [(more[0], None, more[1]), *_REST]), _END])


_Row = tuple[str, Any, str]
"""Flag, value and description."""


def _own_rows(
    parser: ArgumentParser, sources: Sequence[SettingsSource], short: bool
) -> Iterator[_Row]:
    """Yields the keys that are no class's arguments, or the short options alone."""
    for action in parser._actions:
        key = action.dest
        if key.partition(".")[0] in ("trainer", "model", "data", "help", "print_config"):
            continue
        if key in SHORT_OPTIONS or not short:
            text = _TEXTS.get(key, action.help or "")
            # The others are the short `-c` and the appending `--devices+`.
            (flag,) = (o for o in action.option_strings if re.fullmatch(r"--[\w.-]+", o))
            yield flag, _value(key, action.default, sources), text


def _class_rows(key: str, class_path: str, sources: Sequence[SettingsSource]) -> Iterator[_Row]:
    """Yields the arguments of a class."""
    target: Any = locate(class_path)
    described = docstring_parser.parse(target.__doc__ or "").params
    texts = {row.arg_name: row.description or "" for row in described}

    for name, parameter in inspect.signature(target).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        value = _value(f"{key}.{name}", parameter.default, sources)
        yield f"--{key}.{name}", value, texts.get(name, "")


def _value(key: str, default: Any, sources: Sequence[SettingsSource]) -> Any:
    """Returns the value that files and flags give a key, or its default."""
    value = last_value(sources, SHORT_OPTIONS.get(key, key))
    return default if value is ABSENT else value


def _section(title: str, rows: Iterable[_Row]) -> list[str]:
    """Returns a title and one line for each row, in two columns."""
    pairs = [(f"  {flag}{_shown(value)}", " ".join(text.split())) for flag, value, text in rows]
    left = min(max((len(flag) for flag, _ in pairs), default=0), MOST_LEFT)
    lines = [f"{_cut(flag, left):<{left}}  {text}" for flag, text in pairs]
    return ["", title, *(_cut(line, WIDTH).rstrip() for line in lines)]


def _shown(value: Any) -> str:
    """Returns a value as the page has it: a class by its name, nothing for a null."""
    if value in (None, inspect.Parameter.empty, SUPPRESS):
        return ""
    if isinstance(value, Mapping) and "class_path" in value:
        return f" {value['class_path'].rpartition('.')[2]}"
    return f" {value.__name__ if isinstance(value, type) else value}"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 3].rstrip()}..."
