"""Reads the `config.yaml` of a run, within bounds, since a run may come from anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import yaml

from mmemb.records.old_names import with_new_names
from mmemb.records.schema import Excerpt, convert
from mmemb.storage.run_folder import RunFolder

MOST_BYTES = 2**20
MOST_VALUES = 100_000
"""The values behind an alias count wherever it stands; a configuration has about a thousand."""

_AGAIN = "It is not what `experiments.run` writes: fetch or train the run again."


def read_config(run: Path) -> dict[str, Any]:
    """Reads the resolved configuration of a run; its key `model` is a table of a class.

    Raises:
        FileNotFoundError: it is no run.
        ValueError: the file is broken, or too large.
    """
    path = RunFolder(run).config
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: {run} is no run of `experiments.run`. Name a folder below runs/, "
            "such as runs/pocket/embedder."
        )

    # Before parsing, as a file of any size would be read into memory.
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path} has more than {MOST_BYTES >> 10} KiB. {_AGAIN}")

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise ValueError(f"{path} is broken: it is no UTF-8. {_AGAIN}") from None
    except RecursionError:
        raise ValueError(f"{path} is broken: it is nested too deeply. {_AGAIN}") from None
    except (yaml.YAMLError, ValueError) as error:  # a date that is none, too, is a ValueError
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        raise ValueError(f"{path} is broken: no YAML{line} ({reason:.200}). {_AGAIN}") from None

    if _has_more_values(data, MOST_VALUES):
        raise ValueError(f"{path} holds more than {MOST_VALUES} values. {_AGAIN}")
    convert(data, _ConfigYaml, f"{path} is broken", _AGAIN)
    return with_new_names(data, str(path))  # type: ignore[no-any-return]


@final
class _Part(Excerpt):
    """A part of a configuration: its class and arguments."""

    class_path: str = ""
    init_args: dict[str, Any] | None = None


@final
class _ConfigYaml(Excerpt):
    """The keys of a configuration that are read, beside the arguments of classes."""

    model: _Part
    data: _Part | None = None
    trainer: dict[str, Any] | None = None
    name: str | None = None
    experiment: str | None = None
    data_root: str | None = None


def _has_more_values(data: Any, most: int) -> bool:
    """Tells whether nested data has more values than `most`; an alias may hold itself."""
    waiting, seen = [data], 0

    while waiting and seen <= most:
        node = waiting.pop()
        seen += 1

        if isinstance(node, Mapping):
            waiting += node.values()
        elif isinstance(node, list | tuple):
            waiting += node
    return seen > most
