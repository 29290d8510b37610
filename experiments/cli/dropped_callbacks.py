"""Finds the callbacks of a configuration file that a later file or flag has replaced.

A plain `callbacks:` takes the place of the whole list before it, `callbacks+:` adds to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml


def dropped_callbacks(files: Iterable[Path], callbacks: Iterable[str]) -> list[str]:
    """Returns one line for each file of whose callbacks some are left out.

    Args:
        files: named by `--config`, which were checked (`experiments.cli.config_check`).
        callbacks: class paths of the callbacks that are left.
    """
    left = {_name(path) for path in callbacks}
    lines = []
    for file in files:
        trainer = (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get("trainer") or {}
        blocks = [*_blocks(trainer.get("callbacks")), *_blocks(trainer.get("callbacks+"))]

        dropped = [name for name in dict.fromkeys(map(_name, blocks)) if name not in left]
        if dropped:
            lines.append(
                f"note: a later file or flag replaces trainer.callbacks of {file}, which drops "
                f"{', '.join(dropped)}. To keep them, write `callbacks+:` there, or "
                "`--trainer.callbacks+=CLASS`."
            )
    return lines


def _blocks(value: Any) -> Iterator[str]:
    """Yields the class paths of a list of callbacks, or of one callback that stands alone."""
    for block in value if isinstance(value, list) else [value]:
        path = block.get("class_path") if isinstance(block, dict) else block
        if isinstance(path, str):
            yield path


def _name(class_path: str) -> str:
    """Returns the class's own name: a file may give it alone, and the parser adds its module."""
    return class_path.rpartition(".")[2]
