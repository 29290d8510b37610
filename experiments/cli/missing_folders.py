"""Commands that make a folder which a stage reads, and which is missing or broken.

The files of stages lie side by side. The stage to run first is the one that writes the folder, or
whose run has the folder's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from experiments.cli.settings_sources import read_config_file
from mmemb.storage.trust import walk

_DATA = {
    "pocket": "pocket --out",
    "pocket-full": "pocket --profile full --out",
    "own": "folder --table TABLE --media FOLDER --out",
    "mmeb_v2": "mmeb-v2 --source SOURCE --out",
    "mmeb_train": "mmeb-train --source SOURCE --out",
}
"""Data root -> the arguments of `datamodules.prepare` that make it."""

_ROOT = "data_root"

_SHARED = ("--experiment", "--data_root", "--runs")
"""Flags that a command shares with the one before it."""

_AGAIN = "step that makes"
"""Words of an error about a folder that has to be made again."""

_FIELD = re.compile(r"\$\{([\w.]+)\}")


def making_commands(
    message: str,
    experiment: Path,
    data_root: Path,
    files: Sequence[Path],
    arguments: Sequence[str] = (),
) -> str:
    """Returns lines with the commands that make the folders of an error; "" if none is known.

    Args:
        message: of the error, which names the folder.
        experiment: folder of the stage's runs.
        data_root: of the stage.
        files: its configurations; those beside them are looked through.
        arguments: of its command, for the flags that both share.
    """
    commands = []
    if str(data_root) in message and not data_root.is_dir():
        commands += _preparing(data_root, files)

    # A link to a run, or a folder that a run writes.
    names = re.findall(rf"{re.escape(str(experiment))}/([\w-]+)", message)
    for name in dict.fromkeys(names):
        # If the folder is there, the error may be about something else.
        if (experiment / name).exists() and _AGAIN not in message:
            continue
        commands += [f"{words}{_shared(arguments)}" for words in _making(name, files)][:1]

    return "".join(f"\nThis makes it: {command}" for command in commands)


def check_data_root(data_root: Path, files: Sequence[Path]) -> None:
    """Raises FileNotFoundError, with the command that makes it, if there is no data root.

    Args:
        data_root: of a stage that reads it.
        files: configurations of the stage.
    """
    if not data_root.is_dir():
        made = "".join(f"\nThis makes it: {command}" for command in _preparing(data_root, files))
        raise FileNotFoundError(
            f"data_root {data_root}: there is no such folder, so there are no data to read.{made}"
        )


def _preparing(data_root: Path, files: Sequence[Path]) -> list[str]:
    """Returns the command that makes a data root, by its name or that of the stage's own one."""
    roots = [str(read_config_file(path).get(_ROOT, "")) for path in reversed(files)]
    names = [
        name for name in (data_root.name, *(Path(root).name for root in roots)) if name in _DATA
    ]
    return [f"python -m datamodules.prepare {_DATA[name]} {data_root}" for name in names[:1]]


def _making(name: str, files: Sequence[Path]) -> Iterator[str]:
    """Yields the commands of stages in the same folders that leave `name` in their experiment."""
    for folder in dict.fromkeys(path.parent for path in reversed(files)):
        for path in sorted(folder.glob("*.yaml")):
            data = _stage(path)
            if data is None:
                continue

            command = f"python -m experiments.run {{}} --config {path}"
            if name in _written(data):
                yield command.format("predict")
            elif (flags := _flags(str(data.get("name", "")), name)) is not None:
                yield command.format("fit") + flags


def _stage(path: Path) -> Mapping[str, Any] | None:
    """Returns what the file of a stage holds; None of any other file, and of a broken one.

    A file that only lies beside the configuration must not hide the error that is told.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    return data if isinstance(data, Mapping) and "model" in data else None


def _written(data: Mapping[str, Any]) -> list[str]:
    """Returns the names of the folders that the callbacks of a configuration write."""
    settings = [value for key, value in walk(data.get("trainer")) if key == "init_args"]
    folders = [each.get("folder") for each in settings if isinstance(each, Mapping)]
    return [Path(folder).name for folder in folders if isinstance(folder, str)]


def _flags(pattern: str, name: str) -> str | None:
    """Returns the flags that give a stage a name; None if no flags do.

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
