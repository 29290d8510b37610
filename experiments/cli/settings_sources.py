"""Settings as their user gave them: every file and flag of a command line, in their order.

The parser merges them into one configuration, which no longer says who set what.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import yaml

from experiments.cli.config_files import config_names, named_configs, packaged
from mmemb.records.nearest_name import nearest

ABSENT = object()
"""Stands for a key that is not there: None is a value."""

NO_SETTINGS = ("", "config", "help", "help.all", "print_config")
"""Flags that set nothing."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SettingsSource:
    """A file or a flag of a command line, with the settings that it gives.

    Attributes:
        label: path of the file, or the flag with its dashes.
        data: keys and values as nested data; a flag has one key.
        text: the value of a flag as it was typed; None for a file.
    """

    label: str
    data: Mapping[str, Any]
    text: str | None = None

    @property
    def by_flag(self) -> bool:
        """Tells whether a flag sets it, and not a file."""
        return self.text is not None

    def label_of(self, key: str) -> str:
        """Returns the words for a key in this source: the flag, or the key and its file."""
        return self.label if self.by_flag else f"{key} in {self.label}"

    def value(self, key: str) -> Any:
        """Returns the value of a dotted key, or `ABSENT`; see `value_at`."""
        return value_at(self.data, key)


def settings_sources(arguments: Sequence[str]) -> list[SettingsSource]:
    """Returns what each `--config FILE` and each flag sets, in the order of the command line.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is no YAML, or has no keys.
    """
    files = dict(named_configs(arguments))
    sources = []

    for place, word in enumerate(arguments):
        if place in files:
            path = Path(files[place])
            sources.append(SettingsSource(label=_shown(path), data=read_config_file(path)))
            continue

        name, separator, text = word[2:].partition("=")
        if not word.startswith("--") or name in NO_SETTINGS or name.endswith(".help"):
            continue
        if not separator:
            following = arguments[place + 1 : place + 2]
            text = "".join(w for w in following if not w.startswith("--"))
        sources.append(SettingsSource(label=f"--{name}", data=_nested(name, text), text=text))
    return sources


def config_files(arguments: Sequence[str]) -> list[Path]:
    """Returns the files that a command line names, in their order."""
    return [Path(name) for name in config_names(arguments)]


def read_config_file(path: Path) -> Mapping[str, Any]:
    """Returns the keys and values of a file of settings, as they are written."""
    if not path.is_file():
        folders = (path.parent, packaged(str(path)).parent)
        files = [file for folder in folders for file in folder.glob("*.yaml")]
        near = nearest(path.name, [f.name if path.suffix else f.stem for f in files])
        raise FileNotFoundError(f"--config {path}: there is no such file.{near}")

    try:
        text = path.read_text(encoding="utf-8")
        data, node = yaml.safe_load(text) or {}, yaml.compose(text, yaml.SafeLoader)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path} is not YAML: {error}") from None

    if twice := next(_repeated_keys(node), None):
        raise ValueError(
            f"{path}: the key {twice.value} of line {twice.start_mark.line + 1} stands in its "
            "table before, and only one of the two would count. Keep one of them."
        )

    if not isinstance(data, Mapping):
        raise ValueError(f"{path} holds {data!r:.60}; expected keys such as model and data.")
    return data


def _repeated_keys(node: yaml.Node | None) -> Iterator[yaml.ScalarNode]:
    """Yields the keys that their table holds twice; YAML itself takes the last one."""
    nodes, known = [node], set()
    while nodes:
        # An alias leads to a node again, perhaps to one that holds it.
        if id(one := nodes.pop(0)) in known:
            continue
        known.add(id(one))

        if isinstance(one, yaml.SequenceNode):
            nodes += one.value
        elif isinstance(one, yaml.MappingNode):
            keys = [key for key, _ in one.value if isinstance(key, yaml.ScalarNode)]
            names = [key.value for key in keys]
            yield from (key for at, key in enumerate(keys) if key.value in names[:at])
            nodes += [value for _, value in one.value]


def value_at(data: Any, key: str) -> Any:
    """Returns the value of a dotted key in nested data, or `ABSENT`.

    `init_args` may be left out of the key, as on the command line.

    >>> value_at({"model": {"class_path": "M", "init_args": {"seed": 3}}}, "model.seed")
    3
    """
    node = data
    for part in key.split("."):
        if isinstance(node, Mapping) and part not in node:
            node = node.get("init_args")
        if not isinstance(node, Mapping) or part not in node:
            return ABSENT
        node = node[part]
    return node


def last_value(sources: Iterable[SettingsSource], key: str) -> Any:
    """Returns the value that the last file or flag gave a key, or `ABSENT`."""
    values = [value for source in sources if (value := source.value(key)) is not ABSENT]
    return values[-1] if values else ABSENT


def _nested(name: str, text: str) -> dict[str, Any]:
    """Returns a flag as nested data: `a.b` with `3` is `{"a": {"b": 3}}`."""
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # such as a date that is none
        value = text

    for part in reversed(name.removesuffix("+").split(".")):
        value = {part: value}
    return value  # type: ignore[no-any-return]


def _shown(path: Path) -> str:
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
