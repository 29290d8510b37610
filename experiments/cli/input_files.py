"""Finds the files that configurations name: a prompt, the JSON of a model.

Such a file is looked for beside the configuration that names it, then as it is named, then among
the files that come with this package. Folders are not looked for: data and runs start at the
working folder. Settings keep the names of packaged files as a checkout has them
(`experiments/configs/...`), so that a run's fingerprint does not depend on where the package lies.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from experiments.cli.config_files import packaged
from experiments.cli.settings_sources import read_config_file

_FILE_NAME = re.compile(r"[^\n$]{1,500}\.\w{1,10}")
_PARTS = ("model", "data", "trainer")


def find_beside(config: Namespace, files: Sequence[Path]) -> None:
    """Replaces the names of files that lie beside the configuration which names them by paths.

    Args:
        config: parsed settings of a stage; changed in place.
        files: from which they were read, in order.
    """
    # Of two files that give one key the last one counts.
    for path in reversed(files):
        data = read_config_file(path)
        for part in _PARTS:
            if part in data and part in config:
                config[part] = _beside(config[part], data[part], path.parent)


def find_input(name: str) -> Path:
    """Returns the path of an input that settings name, which may be a packaged file."""
    return packaged(name) if _is_packaged(name) else Path(name)


def place_inputs(node: Any) -> Any:
    """Replaces the names of packaged files in settings by their paths, before they are built.

    Args:
        node: settings or a part of them; tables and lists are changed in place.
    """
    if isinstance(node, str | Path):
        # All other texts stay as they are: an address is no path.
        return type(node)(packaged(str(node))) if _is_packaged(str(node)) else node
    return _changed(node, place_inputs)


def _is_packaged(name: str) -> bool:
    """Tells whether a text names a packaged file, and none of the working folder."""
    is_name = _FILE_NAME.fullmatch(name) is not None
    return is_name and not os.path.exists(name) and os.path.isfile(packaged(name))


def _changed(node: Any, change: Callable[[Any], Any]) -> Any:
    """Changes every value of a table or list in place, and returns it."""
    if isinstance(node, list):
        node[:] = map(change, node)

    table = vars(node) if isinstance(node, Namespace) else node
    if isinstance(table, dict):
        for key, value in table.items():
            table[key] = change(value)
    return node


def _beside(node: Any, written: Any, folder: Path) -> Any:
    """Replaces the names of files beside a configuration, in the part of it that names them.

    Args:
        node: the part as parsed, perhaps from several files and flags.
        written: the part as the file has it.
        folder: of the file.
    """
    if isinstance(written, list) and isinstance(node, list) and len(written) == len(node):
        node[:] = [_beside(*pair, folder) for pair in zip(node, written, strict=True)]

    table = vars(node) if isinstance(node, Namespace) else node
    if isinstance(written, Mapping) and isinstance(table, dict):
        for key in filter(table.__contains__, written):
            table[key] = _beside(table[key], written[key], folder)

    # A value that differs from the written one comes from a later file or a flag.
    is_named = isinstance(written, str) and str(node) == written and _FILE_NAME.fullmatch(written)
    if is_named and os.path.isfile(folder / written):
        return type(node)(folder / written)
    return node
