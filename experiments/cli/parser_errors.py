"""Errors of jsonargparse in one paragraph: which key has which value, where, and what was expected.

jsonargparse reports every type that a value was tried as, level by level.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from importlib import import_module

from experiments.cli.config_files import find_config
from experiments.cli.settings_sources import ABSENT, SettingsSource
from mmemb.records.nearest_name import nearest

_KEY = re.compile(r'( *)(?:- )?Parser key "([^"]+)":')

_NOISE = re.compile(
    r"Does not validate against any of the Union subtypes|Subtypes: |Errors:|Given value type: |"
    r"Given value: |Problem with given class_path|Expected a path but |"
    r"Expected a <class 'NoneType'>"
)

_WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}

_CLASS, _CHOICES, _ATTRIBUTE = (
    re.compile(r"Expected a <class '([\w.]+)'>"),
    re.compile(r"Expected a typing\.Literal\[(.*)\]"),
    re.compile(r"module '(\S+)' has no attribute '(\S+)'"),
)

_STAGE_FILE = "Name the file of a stage, such as --config pocket/trunk."


def parser_message(text: str, sources: Sequence[SettingsSource]) -> str:
    """Returns an error of the parser as it is shown.

    Args:
        text: the parser's words.
        sources: the files and flags of the command line.
    """
    if text.startswith("the following arguments are required: "):
        names = [name.rpartition(".")[2] for name in text.partition(": ")[2].split(", ")]
        return f"{' and '.join(names)} not set. {_STAGE_FILE}"

    if text.startswith('expected "subcommand"'):
        return (
            "The first argument must be fit, validate, test or predict. "
            "`python -m experiments.run fit --help` lists what may follow."
        )

    if text.startswith("unrecognized arguments: "):
        words = text.partition(": ")[2].split()
        files = [word for word in words if find_config(word).is_file()]
        return f"{text}. {f'Did you mean --config {files[0]}?' if files else ''}".strip()

    keys, lines = _innermost(text)
    return _about(".".join(keys), lines, sources) if keys else " ".join(lines)


def _innermost(text: str) -> tuple[list[str], list[str]]:
    """Returns the keys that lead to the wrong value, and the lines about it."""
    keys: list[str] = []
    lines: list[str] = []
    depth = -1

    for line in text.splitlines():
        match = _KEY.match(line)
        if match is None:
            lines.append(line.strip().removeprefix("- "))
            continue

        # Another type of a union, which the same value was tried as.
        if len(match[1]) <= depth:
            break
        depth, lines = len(match[1]), []
        keys.append(match[2])
    return keys, [line for line in lines if line]


def _about(key: str, lines: Sequence[str], sources: Sequence[SettingsSource]) -> str:
    """Returns the sentence about a wrong value."""
    complaints = [line for line in lines if not _NOISE.match(line)]
    expected = _unique(filter(None, map(_expected, complaints)))
    others = _unique(_sentence(line) for line in complaints if not _expected(line))

    # The last of these gave the value; a flag is named by its key alone.
    setting = [source for source in sources if source.value(key) is not ABSENT]
    where = f"{setting[-1].label}: {key}" if setting and not setting[-1].by_flag else f"--{key}"

    if not expected:
        return f"{where}: {' '.join(others) or 'this value is not accepted.'}"
    return f"{where}={_value(lines)}: expected {' or '.join(expected)}. {' '.join(others)}".strip()


def _value(lines: Iterable[str]) -> str:
    """Returns the wrong value as the parser shows it: that of the innermost key comes first."""
    text = "\n".join(lines)
    match = re.search(r"Got value: (.*)", text) or re.search(r"Given value: (.*)", text)
    if match is None:
        return "?"

    # How the parser holds the value of a dotted flag.
    nested = re.fullmatch(r"NestedArg\(key='[^']*', val=(.*)\)", match[1])
    return f"{(nested or match)[1].strip(chr(39)):.80}"


def _expected(line: str) -> str | None:
    """Returns what a line of the parser expects, in plain words."""
    if match := _CLASS.match(line):
        name = match[1].rpartition(".")[2]
        return _WORDS.get(name, name)
    if match := _CHOICES.match(line):
        return f"one of {match[1]}"
    if line.startswith("Expected a dot import path string"):
        return "the full path of a class (package.module.Class)"
    return None


def _sentence(line: str) -> str:
    """Returns another line of the parser; a missing class with the nearest name."""
    match = _ATTRIBUTE.match(line)
    if match is None:
        return line

    # It has been imported by the parser.
    module, name = import_module(match[1]), match[2]
    return f"{match[1]} has no {name}.{nearest(name, getattr(module, '__all__', dir(module)))}"


def _unique(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))
