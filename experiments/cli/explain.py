"""`python -m experiments.run fit ... --explain KEY`: which file or flag gave a setting its value.

Nothing is run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

FLAG = "--explain"
_ABSENT = object()


def asked_for(arguments: Sequence[str]) -> tuple[list[str], str | None]:
    """Returns the other arguments, and the key behind `--explain`, if there is one.

    >>> asked_for(["fit", "--explain", "trainer.max_steps", "--config", "a.yaml"])
    (['fit', '--config', 'a.yaml'], 'trainer.max_steps')
    """
    rest = list(arguments)
    for place, word in enumerate(rest):
        if word == FLAG and place + 1 < len(rest):
            return rest[:place] + rest[place + 2 :], rest[place + 1]
        if word.startswith(f"{FLAG}="):
            return rest[:place] + rest[place + 1 :], word.partition("=")[2]
    return rest, None


def explain(arguments: Sequence[str], key: str) -> str:
    """Returns the value of a key, and the files and flags that set it, the last one first.

    Args:
        arguments: of `experiments.run`, without `--explain KEY`.
        key: dotted; `init_args` may be left out, as on the command line.

    Raises:
        ValueError: there is no such key.
    """
    from experiments.cli.checkpoint_check import flattened
    from experiments.cli.config_check import nearest
    from experiments.cli.config_files import find_config, with_configs
    from experiments.cli.experiment_cli import (  # Lightning: only who asks waits for it
        parse,
        with_base,
    )

    config = parse(list(arguments)).as_dict()
    full = _spelt_out(config, key)
    value = _value(config, full)
    if value is _ABSENT:
        raise ValueError(f"there is no setting {key}.{nearest(full, flattened(config))}")

    files = with_base(with_configs(arguments, find_config))
    sources = [*_files(files, full), *_flags(arguments, full)]
    lines = [f"{full} = {value!r}"]

    if not sources:
        lines.append("set by no file and no flag: the default of its class")

    for place, (source, text) in enumerate(reversed(sources)):
        lines.append(f"{'set by' if place == 0 else 'before that'} {source}: {text}")
    return "\n".join(lines)


def _files(arguments: list[str], key: str) -> Iterator[tuple[str, str]]:
    from experiments.cli.config_check import config_files

    for path in config_files(arguments):
        data = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        value = _value(data, _spelt_out(data, key))
        if value is not _ABSENT:
            shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
            yield str(shown), str(value)


def _flags(arguments: Sequence[str], key: str) -> Iterator[tuple[str, str]]:
    for place, word in enumerate(arguments):
        name, separator, value = word.partition("=")
        short = key.replace(".init_args", "")
        if name.startswith("--") and name[2:].replace(".init_args", "") == short:
            yield name, value if separator else " ".join(arguments[place + 1 : place + 2])


def _spelt_out(data: Any, key: str) -> str:
    """Returns the key with `init_args` put in where a class stands and the key leaves it out."""
    node, parts = data, []
    for part in key.split("."):
        # On the command line `--model.losses` means `model.init_args.losses`.
        inner = node.get("init_args") if isinstance(node, Mapping) else None
        if isinstance(inner, Mapping) and part not in node:
            parts.append("init_args")
            node = inner

        parts.append(part)
        node = node.get(part) if isinstance(node, Mapping) else None
    return ".".join(parts)


def _value(data: Any, key: str) -> Any:
    node = data
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return _ABSENT
        node = node[part]
    return node
