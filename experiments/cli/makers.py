"""Says which command makes a folder that a stage names and that is not there.

Stages stand in files side by side: the one that writes a folder, or whose run has its name, is the
one to run first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

_DATA = {
    "pocket": "pocket --out",
    "pocket-full": "pocket --profile full --out",
    "own": "folder --table TABLE --media FOLDER --out",
    "mmeb_v2": "mmeb-v2 --source SOURCE --out",
    "mmeb_train": "mmeb-train --source SOURCE --out",
}
"""Data root -> the arguments of `datamodules.prepare` that make it."""

_SHARED = ("--experiment", "--data_root", "--runs")
"""Flags that a command shares with the one before it."""

_FIELD = re.compile(r"\$\{([\w.]+)\}")


def advice(
    settings: Mapping[str, Any], files: Sequence[Path], arguments: Sequence[str] = ()
) -> str:
    """Returns a sentence with the commands that make what is missing; "" where nothing is known.

    Args:
        settings: of the stage, with `runs`, `experiment` and `data_root`.
        files: its configs; those beside them are looked through.
        arguments: of its command, for the flags that both share.
    """
    experiment = Path(str(settings["runs"]), str(settings["experiment"]))
    data_root = Path(str(settings["data_root"]))

    commands = []
    if not data_root.is_dir() and data_root.name in _DATA:
        commands.append(f"python -m datamodules.prepare {_DATA[data_root.name]} {data_root}")

    paths = dict.fromkeys(_paths([settings["model"], settings["data"]]))
    names = [path.relative_to(experiment).parts[0] for path in paths if experiment in path.parents]
    shared = _shared(arguments)
    for name in dict.fromkeys(names):
        # A link to a run, or a folder that a run writes.
        if not (experiment / name).exists():
            commands += [f"{words}{shared}" for words in _making(name, files)][:1]

    lines = "".join(f"\n  {command}" for command in commands)
    return lines and f"\nNot there yet; this makes it:{lines}"


def _paths(node: Any) -> Iterator[Path]:
    """Yields every text of nested settings as a path."""
    if isinstance(node, Mapping):
        node = list(node.values())
    if isinstance(node, list):
        for value in node:
            yield from _paths(value)
    elif isinstance(node, str):
        yield Path(node)


def _making(name: str, files: Sequence[Path]) -> Iterator[str]:
    """Yields the commands of stages in the same folders that leave `name` in their experiment."""
    for folder in dict.fromkeys(path.parent for path in reversed(files)):
        for path in sorted(folder.glob("*.yaml")):
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
            if not isinstance(data, Mapping) or "model" not in data:
                continue

            command = f"python -m experiments.run {{}} --config {path}"
            if any(folder.name == name for folder in _paths(_written(data))):
                yield command.format("predict")
            elif (flags := _flags(str(data.get("name", "")), name)) is not None:
                yield command.format("fit") + flags


def _written(data: Mapping[str, Any]) -> list[Any]:
    """Returns the folders that the callbacks of a config write."""
    callbacks = (data.get("trainer") or {}).get("callbacks") or []
    return [(callback.get("init_args") or {}).get("folder") for callback in callbacks]


def _flags(pattern: str, name: str) -> str | None:
    """Returns the flags with which a stage has a name; None where it never has.

    >>> _flags("judge-${data.init_args.fold}", "judge-a")
    ' --data.fold a'
    >>> _flags("trunk", "trunk"), _flags("trunk", "gate")
    ('', None)
    """
    keys = _FIELD.findall(pattern)
    fixed = map(re.escape, re.split(_FIELD.pattern.replace("(", "(?:", 1), pattern))
    if (match := re.fullmatch("([^/]+)".join(fixed), name)) is None:
        return None
    values = zip(keys, match.groups(), strict=True)
    return "".join(f" --{key.replace('.init_args', '')} {value}" for key, value in values)


def _shared(arguments: Sequence[str]) -> str:
    words = ""
    for place, word in enumerate(arguments):
        flag, equals, value = word.partition("=")
        if flag in _SHARED:
            words += f" {flag} {value if equals else ' '.join(arguments[place + 1 : place + 2])}"
    return words
