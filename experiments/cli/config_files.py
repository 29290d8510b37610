"""Finds the configuration files that a command line or a pipeline names, from any folder.

A name is looked for as it stands, then among the files that come with this package; `.yaml` may be
left out, and so may `experiments/configs/`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

CONFIGS = Path(__file__).parents[1] / "configs"
"""The packaged files."""

IN_CHECKOUT = "experiments/configs/"
"""Prefix of packaged files in settings and commands, wherever the package lies."""

SUFFIX = ".yaml"
_FLAGS = ("--config", "-c")


def packaged(name: str) -> Path:
    """Returns the place that a name has among the packaged files, whether or not it is there."""
    return CONFIGS / name.removeprefix(IN_CHECKOUT)


def find_config(name: str) -> Path:
    """Returns the file that is meant by `--config NAME`; NAME itself where there is none."""
    return _file(Path(name)) or _file(packaged(name)) or Path(name)


def path_beside(name: str, folder: Path) -> str:
    """Returns the path of a file in `folder`, else the name as it is.

    Args:
        name: as a pipeline file has it.
        folder: of the pipeline file.
    """
    return str(_file(folder / name) or name)


def with_configs(arguments: Sequence[str], find: Callable[[str], object]) -> list[str]:
    """Returns arguments with another name behind each `--config`.

    >>> with_configs(["fit", "--config", "a", "--config=b", "--name", "a"], str.upper)
    ['fit', '--config', 'A', '--config=B', '--name', 'a']
    """
    words = list(arguments)
    for place, name in named_configs(arguments):
        flag = "" if arguments[place] == name else "--config="
        words[place] = f"{flag}{find(name)}"
    return words


def lookup_lines(names: Sequence[str]) -> Iterator[str]:
    """Yields a line for each name that could be read in two ways: which file was taken.

    Args:
        names: of configuration files, as they were given.
    """
    for name in names:
        path, shipped = find_config(name), _file(packaged(name))
        if shipped is None or name.startswith(IN_CHECKOUT) or Path(name).is_absolute():
            continue

        if path == shipped:
            yield f"{name}: {path}, which comes with this package"
        elif not path.samefile(shipped):
            yield f"{name}: {path} of this folder, not the file of that name in this package"


def config_names(arguments: Sequence[str]) -> list[str]:
    """Returns the names behind `--config` or `-c`.

    >>> config_names(["fit", "--config", "a.yaml", "--x=1", "--config=b.yaml", "-c", "c.yaml"])
    ['a.yaml', 'b.yaml', 'c.yaml']
    """
    return [name for _, name in named_configs(arguments)]


def named_configs(arguments: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Yields the place and the name of each configuration file."""
    for place, (before, word) in enumerate(zip(["", *arguments], arguments, strict=False)):
        if before in _FLAGS:
            yield place, word
        elif word.startswith("--config="):
            yield place, word.removeprefix("--config=")


def _file(path: Path) -> Path | None:
    """Returns the path, or that with `.yaml`, of which a file exists."""
    for candidate in (path, Path(f"{path}{SUFFIX}")):
        if candidate.is_file():
            return candidate
    return None
